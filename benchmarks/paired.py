"""One network of a run against others, scene by scene: differences in PSNR, and how near chi^2/N is to 1.

    python -m benchmarks.paired runs/signal-to-noise unrolled edsr rcan flow

Prints two Markdown tables over the test scenes, overall and by S/N: mean differences with 95 % bootstrap intervals; and
of the truth and each network the share of scenes with chi^2/N in 1 +- 0.05, and chi^2/N, mean [least, most].
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simulate.shards import read_pairs
from sr.bootstrap import bootstrap_along
from sr.metrics import data_range_of, fidelity_scores, image_scores
from sr.model_folder import load_model
from sr.signal_to_noise import signal_to_noise_groups

CPU = torch.device("cpu")
HELD = 0.05
"""How far chi^2/N may be from 1."""


def held(chi2_per_pixel: np.ndarray) -> str:
    """The share of scenes (N,) within `HELD` of 1; mean [least, most]."""
    least, mean, most = chi2_per_pixel.min(), chi2_per_pixel.mean(), chi2_per_pixel.max()
    return f"{np.mean(np.abs(chi2_per_pixel - 1) <= HELD) * 100:.0f} %, {mean:.3f} [{least:.3f}, {most:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables. Raises `InputError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    options = parser.parse_args(arguments)
    train, test = (read_pairs(options.run / "data", split) for split in ("train", "test"))
    data_range = data_range_of(train.hr, train.hr_mask)
    psnr_db, chi2 = {}, {"truth": fidelity_scores(test.hr, test, None)[0]["chi2_per_pixel"]}
    for name in options.models:
        prediction = load_model(options.run / "train" / name, CPU).super_resolve_pairs(test, CPU)
        psnr_db[name] = image_scores(prediction, test, data_range)["psnr_db"]
        chi2[name] = fidelity_scores(prediction, test, None)[0]["chi2_per_pixel"]
    offset = {name: np.abs(one - 1) for name, one in chi2.items()}
    groups = {"all": np.ones(len(test), bool), **signal_to_noise_groups(test)}
    generator = np.random.default_rng(0)

    def interval(values: np.ndarray, digits: int) -> str:
        mean, low, high = (float(one) for one in bootstrap_along(np.mean, values, generator))
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    first, *others = options.models
    print("| " + " | ".join(["", *groups]) + " |\n|" + "---|" * (len(groups) + 1))
    for name in others:
        cells = [interval((psnr_db[first] - psnr_db[name])[own], 2) for own in groups.values()]
        print(f"| PSNR, {first} − {name} (dB) | " + " | ".join(cells) + " |")
    for name in others:
        cells = [interval((offset[first] - offset[name])[own], 4) for own in groups.values()]
        print(f"| \\|χ²/N − 1\\|, {first} − {name} | " + " | ".join(cells) + " |")
    head = ["χ²/N", *(f"{name} ({own.sum()} scenes)" for name, own in groups.items())]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, one in chi2.items():
        print(f"| `{name}` | " + " | ".join(held(one[own]) for own in groups.values()) + " |")


if __name__ == "__main__":
    main()
