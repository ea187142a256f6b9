"""Does a network that is told the PSF serve many seeings? Scores on a data set in which each pair has a PSF of its own.

    python -m benchmarks.seeings runs/seeings

Prints a Markdown table of all finished models of the run on its test split, overall and by thirds of the FWHM: mean
PSNR with its 95 % bootstrap interval over scenes, and chi^2/N of A(SR) - LR with each pair's own PSF. Networks that
know the degradation are scored a second time, told the mean matching kernel of the training split in place of the
pair's own. Below, differences in PSNR paired by scene: of those networks and all others.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simulate.errors import InputError
from simulate.scene import Scene
from simulate.shards import Pairs, read_pairs
from sr.bootstrap import bootstrap_along
from sr.degradation import knows_degradation
from sr.evaluate import finished_models
from sr.metrics import data_range_of, fidelity_scores, image_scores
from sr.operators import matching_kernels
from sr.trained_model import interpolation_model

CPU = torch.device("cpu")
TOLD_THE_MEAN = "{}, told the mean PSF"
Scores = dict[str, np.ndarray]


def fwhms_arcsec(pairs: Pairs) -> np.ndarray:
    """(N,) FWHM of each pair's LR PSF. Raises `InputError` if the pairs share one."""
    found = [Scene.from_json(name).lr_psf_fwhm_arcsec for name in pairs.name]
    if None in found:
        raise InputError("the pairs share one PSF, expected data simulated with simulate.lr_psf_fwhm_arcsec")
    return np.array(found)


def groups_of(fwhm_arcsec: np.ndarray) -> dict[str, np.ndarray]:
    """All scenes and thirds of them by FWHM, with the range in arcsec: name -> (N,) bool."""
    groups = {"all": np.ones(len(fwhm_arcsec), bool)}
    rank = fwhm_arcsec.argsort().argsort()
    for number, name in enumerate(("sharpest", "middle", "broadest")):
        rows = rank * 3 // len(rank) == number
        groups[f'{name}, {fwhm_arcsec[rows].min():.2f}"–{fwhm_arcsec[rows].max():.2f}"'] = rows
    return groups


def predictions(run: Path, test: Pairs) -> tuple[dict[str, np.ndarray], list[str]]:
    """Images (N,1,H,W) of every method, and the names of the networks that were told the PSF."""
    train = read_pairs(run / "data", "train")
    mean_kernel = matching_kernels(train.hr_band, train.lr_band).mean(0)[None]
    images = {"truth": test.hr, "bicubic": interpolation_model("bicubic", test).super_resolve_pairs(test, CPU)}
    told = []
    for model in finished_models(run, CPU):
        images[model.name] = model.super_resolve_pairs(test, CPU)
        if knows_degradation(model.network):
            told.append(model.name)
            wrong = model.super_resolve(test.lr, test.lr_noise, CPU, kernels=mean_kernel)
            images[TOLD_THE_MEAN.format(model.name)] = wrong
    return images, told


def score(images: dict[str, np.ndarray], test: Pairs, data_range: float) -> dict[str, Scores]:
    """ "psnr_db" and "chi2_per_pixel" (N,) of each method."""
    return {
        name: {
            "psnr_db": image_scores(one, test, data_range)["psnr_db"],
            "chi2_per_pixel": fidelity_scores(one, test, None)[0]["chi2_per_pixel"],
        }
        for name, one in images.items()
    }


def markdown(scores: dict[str, Scores], told: Sequence[str], groups: dict[str, np.ndarray]) -> str:
    """The table, and below it the differences in PSNR."""
    generator = np.random.default_rng(0)

    def interval(values: np.ndarray, sign: str = "") -> str:
        mean, low, high = bootstrap_along(np.mean, values, generator)
        return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"

    head = ["", *(f"{name} ({rows.sum()})" for name, rows in groups.items())]
    lines = [head, ["---"] * len(head)]
    for name, one in scores.items():
        cells = []
        for rows in groups.values():
            quality = "" if name == "truth" else f"{interval(one['psnr_db'][rows])}, "
            cells.append(f"{quality}{np.mean(one['chi2_per_pixel'][rows]):.3f}")
        lines.append([f"`{name}`", *cells])
    for name in told:
        for other in scores:
            if other not in (name, "truth"):
                gain = scores[name]["psnr_db"] - scores[other]["psnr_db"]
                cells = [interval(gain[rows], "+") for rows in groups.values()]
                lines.append([f"`{name}` − `{other}`", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table. Raises `InputError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with data and trained models")
    run = parser.parse_args(arguments).run
    test, train = read_pairs(run / "data", "test"), read_pairs(run / "data", "train")
    groups = groups_of(fwhms_arcsec(test))
    images, told = predictions(run, test)
    print(markdown(score(images, test, data_range_of(train.hr, train.hr_mask)), told, groups))


if __name__ == "__main__":
    main()
