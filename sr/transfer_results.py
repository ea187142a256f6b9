"""The table and the example pictures of the stage `transfer`."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simulate.shards import Pairs

from .bootstrap import bootstrap_interval
from .cross_validation import object_means
from .metrics import image_scores, summarise

EXAMPLES_NAME = "examples.h5"
EXAMPLES = 4
BASELINE = "-"  # in place of a model's name for the interpolations

Key = tuple[str, str]  # (model, variant)


def tabulate(
    predictions: dict[Key, np.ndarray], pairs: Pairs, data_range: float, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """{"rows", "differences"}: each prediction's scores, and what the fine-tuned models gained, over objects.

    A row has mean scores (for "absolute_flux_error" the median) with intervals; a difference is the PSNR of a
    fine-tuned model less that of the unpretrained one, of bicubic or of adapters, object by object, with its interval.
    """
    scores = {
        key: object_means(image_scores(images, pairs, data_range), pairs.name) for key, images in predictions.items()
    }
    rows = []
    for (model, variant), values in scores.items():
        summary: dict[str, Any] = summarise(values, np.random.default_rng(seed))
        del summary["flux_error"]  # signed no more
        rows.append({"model": model, "variant": variant, **summary})
    differences = []
    for model in dict.fromkeys(model for model, _ in predictions if model != BASELINE):
        others = ((model, "unpretrained"), (BASELINE, "bicubic"), (model, "lora"))
        for other in (one for one in others if one in scores):
            gain = scores[model, "fine-tuned"]["psnr_db"] - scores[other]["psnr_db"]
            interval = bootstrap_interval(np.mean, (gain,), np.random.default_rng(seed))
            differences.append({"model": model, "variant": "fine-tuned", "minus": other[1], "psnr_db": interval})
    return {"rows": rows, "differences": differences}


def write_examples(path: Path, pairs: Pairs, predictions: dict[Key, np.ndarray], data_range: float) -> None:
    """Write images of a few objects, evenly spaced in the order of the data, as `transfer_run` describes."""
    _, first = np.unique(pairs.name, return_index=True)  # one image an object
    first.sort()
    chosen = first[np.unique(np.linspace(0, len(first) - 1, EXAMPLES).round().astype(int))]
    examples = pairs.select(chosen)
    with h5py.File(path, "w") as file:
        file.attrs["unit"] = pairs.unit
        file.attrs["scale"] = pairs.scale
        for name in ("lr", "lr_noise", "hr", "hr_mask", "index"):
            file.create_dataset(name, data=getattr(examples, name), fletcher32=True)
        file.create_dataset("object", data=list(examples.name), dtype=h5py.string_dtype("utf-8"))
        for (model, variant), images in predictions.items():
            dataset = file.create_dataset(f"prediction/{model}/{variant}", data=images[chosen], fletcher32=True)
            dataset.attrs["psnr_db"] = image_scores(images[chosen], examples, data_range)["psnr_db"]
