"""Draw the pictures of the README and of docs/ from finished runs.

    python docs/make_figures.py simulated runs/quickstart docs/figures/simulated.png
    python docs/make_figures.py fits docs/figures/real_lenses.png TITLE IN.fits[HDU] OUT.fits [TITLE IN OUT ...]

The first shows, for each kind of dark matter, the test scene of median gain: LR, bicubic, the best network, the truth,
and what the network got wrong. The second shows FITS images before and after `pipeline super-resolve`.
"""

import argparse
import json
import re
from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def show(axes: Axes, image: np.ndarray, noise: float, peak: float, title: str = "") -> None:
    """One image in an asinh stretch that is linear within twice the noise."""
    stretched = np.arcsinh(image / (2 * noise))
    axes.imshow(stretched, origin="lower", cmap="inferno", vmin=-0.7, vmax=np.arcsinh(peak / (2 * noise)))
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def simulated(run: Path, target: Path) -> None:
    """LR, bicubic, best network, truth and residual of one scene a class."""
    best = json.loads((run / "evaluate" / "metrics.json").read_text())["best_model"]
    with h5py.File(run / "evaluate" / "examples.h5") as file:
        rows = np.flatnonzero(file["quantile"][()] == 0.5)
        classes = [str(file.attrs["classes"][label]) for label in file["label"][rows]]
        figure = Figure(figsize=(10, 2.05 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), 5, squeeze=False)
        for axes, row, kind in zip(grid, rows, classes, strict=True):
            lr, hr = file["lr"][row, 0], file["hr"][row, 0]
            scale = hr.shape[0] // lr.shape[0]
            noise = float(np.median(file["lr_noise"][row])) / scale**2
            first = row == rows[0]
            panels = {"LR": lr / scale**2, "bicubic": file["sr/bicubic"][row, 0]}
            panels |= {best.upper(): file[f"sr/{best}"][row, 0], "truth": hr}
            for one, (title, image) in zip(axes, panels.items(), strict=False):
                show(one, image, noise, float(hr.max()), title if first else "")
            axes[0].set_ylabel(kind, fontsize=11)
            residual = (panels[best.upper()] - hr) / noise
            picture = axes[4].imshow(residual, origin="lower", cmap="RdBu_r", vmin=-10, vmax=10)
            axes[4].set_title(f"({best.upper()} − truth) / noise" if first else "", fontsize=10)
            axes[4].set_xticks([])
            axes[4].set_yticks([])
        figure.colorbar(picture, ax=grid[:, 4], shrink=0.6)
    figure.savefig(target, dpi=110)


def read(name: str) -> np.ndarray:
    """The image of "FILE.fits" or "FILE.fits[HDU]", or of the first image HDU."""
    match = re.fullmatch(r"(.*?)(?:\[(\w+)\])?", name)
    assert match is not None
    with fits.open(match[1]) as hdus:
        image = hdus[match[2]] if match[2] else next(one for one in hdus if one.data is not None)
        return np.asarray(image.data, dtype=float)


def real(target: Path, entries: list[str]) -> None:
    """Each image whole, and its middle before and after."""
    triples = [entries[start : start + 3] for start in range(0, len(entries), 3)]
    figure = Figure(figsize=(10, 3.5 * len(triples)), layout="constrained")
    grid = figure.subplots(len(triples), 3, squeeze=False)
    for axes, (title, before, after) in zip(grid, triples, strict=True):
        lr, hr = read(before), read(after)
        scale = hr.shape[0] // lr.shape[0]
        noise = 1.4826 * float(np.nanmedian(np.abs(lr - np.nanmedian(lr))))
        start, stop = round(0.32 * lr.shape[0]), round(0.68 * lr.shape[0])
        middle, fine = slice(start, stop), slice(start * scale, stop * scale)
        peak = float(np.nanpercentile(lr[middle, middle], 99))
        show(axes[0], lr, noise, peak, "input")
        show(axes[1], lr[middle, middle], noise, peak, "input, middle")
        show(axes[2], hr[fine, fine] * scale**2, noise, peak, "super-resolved, middle")
        axes[0].set_ylabel(title, fontsize=10)
    figure.savefig(target, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("simulated")
    one.add_argument("run", type=Path)
    one.add_argument("target", type=Path)
    other = kinds.add_parser("fits")
    other.add_argument("target", type=Path)
    other.add_argument("entries", nargs="+")
    arguments = parser.parse_args()
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    if arguments.kind == "simulated":
        simulated(arguments.run, arguments.target)
    else:
        real(arguments.target, arguments.entries)


if __name__ == "__main__":
    main()
