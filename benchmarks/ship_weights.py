"""Put trained models into the package: python -m benchmarks.ship_weights RUN NAME[=OTHER_NAME] ... [--lenses OTHER_RUN]

Users compare shipped models by scores on the same lenses, under the instrument's usual PSF: where a model was trained
on data of its own, with many PSFs, `--lenses` names the run whose validation split has them. The card has the scores on
its own data, too, and the PSF of those lenses is the one that is taken for images that come without.

A model goes to sr/weights/NAME (or OTHER_NAME): weights in half precision, config.json and a card, with validation
scores measured anew on what was stored. One that loses more than 0.01 dB by being stored so, or that has more than
8 MiB, is refused, and nothing of it is written. Networks are float32 again when they are loaded.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from simulate.errors import InputError
from simulate.shards import Pairs, manifest_sha256, read_pairs
from sr.config import find_device
from sr.degradation import UsualKernel
from sr.domain import seen_range
from sr.metrics import data_range_of, image_scores, summarise
from sr.model_folder import load_model, save_model
from sr.operators import matching_kernels
from sr.shipped import WEIGHTS_FOLDER
from sr.trained_model import TrainedModel, interpolation_model

MAXIMUM_BYTES = 8 * 2**20
"""Of a model's files together."""
MAXIMUM_LOSS_DB = 0.01


def measure(model: TrainedModel, val: Pairs, data_range: float, device: torch.device) -> dict[str, np.ndarray]:
    """PSNR and SSIM of each validation scene."""
    scores = image_scores(model.at_scale(val.scale).super_resolve_pairs(val, device), val, data_range)
    return {name: scores[name] for name in ("psnr_db", "ssim")}


def in_half_precision(model: TrainedModel) -> TrainedModel:
    """A copy to be stored."""
    training = {**model.config.training, "stored_as": "float16"}
    config = model.config.model_copy(update={"training": training})
    return TrainedModel(model.name, copy.deepcopy(model.network).half(), config, model.kernel)


def kernel_of(model: TrainedModel, pairs: Pairs) -> UsualKernel | None:
    """What `model` takes for images that come without a PSF, if they are seen as `pairs`."""
    if model.kernel is None:
        return None
    kernels = {scale: matching_kernels(pairs.hr_band_at(scale), pairs.lr_band).mean(0) for scale in model.config.scales}
    return UsualKernel(kernels.pop(model.config.scale), model.kernel.hr_band, kernels)


def splits_of(run: Path, scales: Sequence[int] = ()) -> dict[int, tuple[Pairs, float]]:
    """The validation split of RUN/data and the training split's data range, at each scale; none given: the data's."""
    train, val = (read_pairs(run / "data", split) for split in ("train", "val"))
    coarse = {scale: train.at_scale(scale) for scale in scales or (train.scale,)}
    return {scale: (val.at_scale(scale), data_range_of(one.hr, one.hr_mask)) for scale, one in coarse.items()}


def check_lenses(model: TrainedModel, lenses: Path, val: Pairs) -> None:
    """Raise `InputError` if `val` of the run `lenses` is not what the model is for."""
    config, band = model.config, val.lr_band
    expected = (config.unit, config.lr_instrument, config.lr_pixel_scale_arcsec)
    if (val.unit, band.instrument, band.pixel_scale_arcsec) != expected or val.scale not in model.scales:
        raise InputError(
            f'--lenses {lenses}: expected {config.lr_instrument}, {config.lr_pixel_scale_arcsec:g}", {config.unit}, '
            f'found {band.instrument}, {band.pixel_scale_arcsec:g}", {val.unit}, x{val.scale}'
        )


def ship(
    run: Path, name: str, folder: Path, device: torch.device, lenses: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Store RUN/train/NAME in `folder`, whose name it takes; returns the scores by which users compare it.

    They are on the validation lenses of the run `lenses`, the scores on RUN's own at each scale come besides, and the
    PSF is that of `lenses`; None: of RUN.
    Raises `InputError` if the model was trained on other data than RUN/data, is for other images than `lenses`, loses
    too much or is too large, and without `lenses` if it serves several scales.
    """
    model = load_model(run / "train" / name, device)
    if model.config.data_sha256 != manifest_sha256(run / "data"):
        raise InputError(f"{run / 'train' / name}: was trained on other data than {run / 'data'}")
    if lenses is None and len(model.scales) > 1:
        raise InputError(f"{name}: serves several scales; give --lenses to compare it with others by")
    [common] = splits_of(lenses or run).values()
    splits, val = {"validation": common}, common[0]
    if lenses is not None:
        check_lenses(model, lenses, val)
        seen = seen_range(read_pairs(run / "data", "train"))
        config = model.config.model_copy(update={"training_range": seen})
        model = replace(model, kernel=kernel_of(model, val), config=config)
        splits |= {f"validation, own data, x{scale}": one for scale, one in splits_of(run, model.scales).items()}
    small = in_half_precision(replace(model, name=folder.name))
    bicubic = measure(interpolation_model("bicubic", val), *splits["validation"], device)["psnr_db"]
    with TemporaryDirectory() as temporary:
        trial = Path(temporary) / name
        save_model(small, trial, None)
        stored, scores = load_model(trial, device), dict[str, dict[str, Any]]()
        for split, (pairs, data_range) in splits.items():
            before, after = (measure(one, pairs, data_range, device) for one in (model, stored))
            change = float(after["psnr_db"].mean() - before["psnr_db"].mean())
            if not change >= -MAXIMUM_LOSS_DB:  # NaN is refused, too
                raise InputError(
                    f"{name}: its PSNR ({split}) changes by {change:.4f} dB when it is stored as float16, at most "
                    f"{MAXIMUM_LOSS_DB:g} dB may be lost; train it again, with a smaller learning rate"
                )
            scores[split] = {
                **summarise(after, np.random.default_rng(seed)),
                "psnr_change_by_float16_db": change,
            }
        gain = scores["validation"]["psnr_db"]["mean"] - float(bicubic.mean())
        scores["validation"] = {**scores["validation"], "psnr_gain_over_bicubic_db": gain}
        if lenses is not None:
            compared = f"x{val.scale}, on the lenses that all shipped models are compared on"
            small.config.training["validation"] = compared
        save_model(small, trial, scores)
        size = sum(path.stat().st_size for path in trial.iterdir())
    if size > MAXIMUM_BYTES:
        raise InputError(f"{name}: its files have {size:,} bytes, at most {MAXIMUM_BYTES:,} can be shipped")
    save_model(small, folder, scores)
    return scores["validation"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("names", nargs="+", metavar="NAME[=OTHER_NAME]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FOLDER, metavar="FOLDER")
    parser.add_argument("--lenses", type=Path, metavar="RUN", help="whose validation split scores; default: RUN's")
    options = parser.parse_args(arguments)
    for given in options.names:
        device = find_device(options.device)
        name, _, other = given.partition("=")
        folder = options.weights / (other or name)
        scores = ship(options.run, name, folder, device, options.lenses)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(
            f"{folder}: {size:,} bytes; validation PSNR {scores['psnr_db']['mean']:.3f} dB, "
            f"changed by {scores['psnr_change_by_float16_db']:+.5f} dB by half precision"
        )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
