"""K-fold cross-validation by object: who is held out when, and what was predicted for them."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from simulate.errors import InputError
from simulate.shards import write_atomically


def assign_folds(names: tuple[str, ...], folds: int, generator: np.random.Generator) -> np.ndarray:
    """The fold (N,) in which each image is held out: all images of one object share it, folds differ by one object.

    Raises `InputError` if there are fewer objects than folds.
    """
    objects = np.unique(names)
    if len(objects) < folds:
        raise InputError(f"transfer.folds: expected at most {len(objects)}, the number of objects, found {folds}")
    fold_of = dict(zip(generator.permutation(objects).tolist(), np.arange(len(objects)) % folds, strict=True))
    return np.array([fold_of[name] for name in names])


def object_means(scores: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Scores (N,) of images -> their mean over the images of each object, so that objects are what is resampled.

    "flux_error" becomes the mean of |flux_error|: errors of opposite sign in two bands do not cancel.
    """
    _, position = np.unique(names, return_inverse=True)
    counts = np.bincount(position)
    return {
        name: np.bincount(position, weights=np.abs(values) if name == "flux_error" else values) / counts
        for name, values in scores.items()
    }


def save_fold(path: Path, predictions: Mapping[str, np.ndarray], identity: str) -> None:
    """Keep a finished fold's predictions, one (n,1,H,W) data set a variant, for a run that is resumed."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file.attrs["identity"] = identity
            for variant, images in predictions.items():
                file.create_dataset(variant, data=images, fletcher32=True)

    write_atomically(path, write)


def load_fold(path: Path, identity: str) -> dict[str, np.ndarray] | None:
    """The predictions of a fold; None if it has not finished. Raises `InputError` if it belongs to other work."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            if file.attrs["identity"] == identity:
                return {variant: file[variant][()] for variant in file}
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it, or start again with --fresh") from None
    raise InputError(f"{path}: from other settings, data or models; use --fresh to start again, or another --out")
