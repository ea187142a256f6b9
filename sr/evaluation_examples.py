"""Example images of an evaluation, chosen by rank, so that nobody picks the pretty ones."""

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np

from simulate.shards import Pairs, write_atomically

EXAMPLES_NAME = "examples.h5"
EXAMPLE_QUANTILES = (0.5, 0.1, 0.9)


def choose_examples(label: np.ndarray, gain: np.ndarray, quantile: float) -> list[int]:
    """Rows of the data: for each class in `label` (N,) the scene at `quantile` of the gain (N,)."""
    chosen = []
    for one in np.unique(label):
        rows = np.flatnonzero(label == one)
        ranked = rows[np.argsort(gain[rows], kind="stable")]
        chosen.append(int(ranked[round(quantile * (len(ranked) - 1))]))
    return chosen


def write_examples(
    path: Path, methods: Mapping[str, Callable[[Pairs], np.ndarray]], test: Pairs, gain_db: np.ndarray
) -> None:
    """Write HDF5 with n scenes of `test` (N), one per class at each of `EXAMPLE_QUANTILES` of `gain_db` (N,), a PSNR.

    Of these: lr, lr_noise (n,1,h,w), hr and sr/<method> (n,1,H,W) flux per pixel; label, index, quantile and
    psnr_gain_db (n,).
    """
    chosen = [
        (row, quantile) for quantile in EXAMPLE_QUANTILES for row in choose_examples(test.label, gain_db, quantile)
    ]
    rows = np.array([row for row, _ in chosen])
    pairs = test.select(rows)

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name in ("lr", "lr_noise", "hr", "label", "index"):
                file.create_dataset(name, data=getattr(pairs, name))
            file.create_dataset("quantile", data=np.array([quantile for _, quantile in chosen]))
            file.create_dataset("psnr_gain_db", data=gain_db[rows])
            for name, method in methods.items():
                file.create_dataset(f"sr/{name}", data=method(pairs), compression="gzip", shuffle=True)
            file.attrs["classes"] = list(pairs.classes)
            file.attrs["methods"] = list(methods)
            file.attrs["unit"] = pairs.unit
            file.attrs["lr_pixel_scale_arcsec"] = pairs.lr_band.pixel_scale_arcsec
            file.attrs["hr_pixel_scale_arcsec"] = pairs.hr_band.pixel_scale_arcsec

    write_atomically(path, write)
