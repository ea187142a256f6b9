"""Make the tables and pictures of docs/results.md from what `python -m benchmarks.zoo` left.

    python docs/make_results.py tables docs/results docs/results.md
    python docs/make_results.py figure runs/paper-cpu docs/figures/zoo.png

The first fills the parts of the page between `<!-- begin NAME -->` and `<!-- end NAME -->`: `zoo`, a table of each
folder of results (a configuration on a kind of device), `origin` and `deeplense`, the tables of the works before with
ours beside them. The second shows of each kind of dark matter the test scene of median gain: LR, every method, the
truth, and below each method what it got wrong.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from make_figures import show
from make_tables import interval
from matplotlib.figure import Figure

ORIGIN = {
    "bilinear": ("41.64", "0.9756"),
    "rcan": ("42.23", "0.9772"),
    "srresnet": ("42.27", "0.9765"),
    "srgan": ("26.52", "0.566"),
}
"""PSNR (dB) and SSIM of the project that this one began with, on its simulated lenses."""
SATURATED = "0.566 to 0.574"
DEEPLENSE = {
    "bilinear": ("24.78", "0.303"),
    "rcan": ("30.500", SATURATED),
    "rdn": ("30.498", SATURATED),
    "srresnet-18": ("30.495", SATURATED),
    "edsr": ("30.493", SATURATED),
    "fsrcnn": ("30.452", SATURATED),
    "fsrcnn_hybrid": ("30.425", SATURATED),
    "fsrcnn_equivariant": ("19.35", "–"),
}
"""The same of the DeepLense super-resolution study of 2023: its Model I, 150 from 75 pixels, HR images with noise."""
ALIASES = {"srresnet-18": ("srresnet-18", "srresnet")}
"""Names of ours that stand for one of theirs, the first that there is."""
COLUMNS, MIDDLE = 7, 0.65
"""Panels in a row of the picture, and the share of each image's width that it shows."""

Record = dict[str, Any]


def read_results(folder: Path) -> tuple[list[Record], list[Record]]:
    """The records of one folder by falling PSNR, and those that no table may have (mixed devices).

    Raises `SystemExit` if they were not all measured on the same test scenes and the same kind of device.
    """
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    records = [one for one in contents if one["kind"] != "ceiling"]
    for key in ("data_sha256", "evaluated_on"):
        if len({record[key] for record in records}) > 1:
            raise SystemExit(f"{folder}: the results differ in {key}; move those of earlier runs away")
    records.sort(key=lambda record: -record["scores"]["psnr_db"]["mean"])
    return [one for one in records if not one["mixed"]], [one for one in records if one["mixed"]]


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.10g}"


def describe(records: list[Record]) -> str:
    """Machine, date, scenes and budget of a folder's records."""
    dates = sorted({record["machine"]["date"] for record in records})
    machine = records[0]["machine"]
    parts = [
        " to ".join(dict.fromkeys([dates[0], dates[-1]])),
        *([machine["gpu"]] if records[0]["evaluated_on"] != "cpu" else []),
        f"{machine['cpu']}, {machine['cores']} cores",
        f"torch {machine['versions']['torch']}",
        f"configuration `{records[0]['config']}`"
        + "".join(f", `{one}`" for one in sorted({one for record in records for one in record["overrides"]})),
        f"{records[0]['counts']['train']:,} training pairs",
        f"{records[0]['scenes']:,} test scenes",
    ]
    budgets = {_budget(record["training"]) for record in records if "training" in record}
    return "; ".join(parts) + "; " + ("; or ".join(sorted(budgets)) or "nothing was trained") + "."


def _budget(training: Record) -> str:
    crops = f"crops of {training['crop_size']} LR pixels" if training["crop_size"] else "whole images"
    return f"{training['steps']:,} steps of {training['batch_size']} {crops}, {training['precision']}"


def zoo_table(folder: Path) -> list[str]:
    """Every model of a folder of results, with what each was measured on."""
    records, mixed = read_results(folder)
    if not records:
        return []
    head = ["model", "parameters", "PSNR (dB)", "gain over bicubic (dB)", "SSIM", "MSE (nJy²)", "flux error (%)"]
    rows = [[*head, "images/s", "training (s)"]]
    for record in records:
        scores, size = record["scores"], record.get("size")
        cells = [
            record["model"] + (f" ({size})" if size else ""),
            f"{record['parameters']:,}" if record["parameters"] else "–",
            interval(scores["psnr_db"], 2),
            interval(scores["psnr_gain_db"], 2),
            interval(scores["ssim"], 4),
            interval(scores["mse"], 2),
            interval(scores["absolute_flux_error"], 2, 100),
            three_digits(record["images_per_second"]["median"]),
            f"{record['training_seconds']:,.0f}" if "training" in record else "–",
        ]
        rows.append(cells)
    lines = [f"### {folder.name}", describe(records), "", *table(rows)]
    disturbed = max(record["images_per_second"]["disturbed_cores"] or 0.0 for record in records)
    if disturbed > 0.1:
        lines += [
            f"The machine was busy with other work while speeds were taken: up to {disturbed:.1f} cores of it.",
            "",
        ]
    if mixed:
        names = ", ".join(record["model"] for record in mixed)
        lines += [f"Left out, as trained or evaluated on more than one kind of device: {names}.", ""]
    return lines


def comparison(folder: Path, theirs: dict[str, tuple[str, str]], work: str) -> list[str]:
    """Their table with the models of a folder of ours beside it."""
    ours = {record["model"]: record for record in read_results(folder)[0]}
    found = {name: next((one for one in ALIASES.get(name, (name,)) if one in ours), None) for name in theirs}
    if "bilinear" not in ours or not any(name for key, name in found.items() if key != "bilinear"):
        return []
    base, our_base = float(theirs["bilinear"][0]), ours["bilinear"]["scores"]["psnr_db"]["mean"]
    head = [f"{work}: PSNR (dB)", "SSIM", "gain over bilinear (dB)"]
    rows = [["model", *head, "ours: PSNR (dB)", "SSIM", "gain over bilinear (dB)"]]
    for name, (psnr_db, ssim) in theirs.items():
        row = [name, psnr_db, ssim, f"{float(psnr_db) - base:+.2f}"]
        mine = found[name]
        if mine is None:
            rows.append([*row, "–", "–", "–"])
            continue
        scores, size = ours[mine]["scores"], ours[mine].get("size")
        if size:
            row[0] += f" (ours: {size})" if mine == name else f" (ours: {mine}, {size})"
        cells = [interval(scores["psnr_db"], 2), interval(scores["ssim"], 4)]
        rows.append([*row, *cells, f"{scores['psnr_db']['mean'] - our_base:+.2f}"])
    about = (
        f"Ours: `{folder.name}`, as above. {work[0].upper()}{work[1:]} has lenses, noise and a data range of its own: "
        "between the halves of the table PSNR and SSIM cannot be compared, only gains over bilinear, and these roughly."
    )
    return [about, "", *table(rows)]


def fill(page: str, parts: dict[str, list[str]]) -> str:
    """The page with what is between its marks replaced. Raises `SystemExit` if a mark is missing."""
    for name, lines in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise SystemExit(f"the page needs one {begin} and, below it, one {end}")
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = "\n".join([begin, *lines, end])
        page = re.sub(pattern, lambda _, text=text: text, page, flags=re.DOTALL)
    return page


def tables(results: Path, page: Path) -> None:
    """Fill the page's tables from all folders of results, those with a page of their own apart (`make_ceiling.py`)."""
    folders = sorted(path for path in results.iterdir() if path.is_dir() and not (path / "ceiling.json").is_file())
    parts = {
        "zoo": [line for folder in folders for line in zoo_table(folder)],
        "origin": [line for folder in folders for line in comparison(folder, ORIGIN, "the origin")],
        "deeplense": [line for folder in folders for line in comparison(folder, DEEPLENSE, "DeepLense SR")],
    }
    page.write_text(fill(page.read_text(encoding="utf-8"), parts), encoding="utf-8")


def middle(image: np.ndarray) -> np.ndarray:
    """The part of an image that is shown."""
    size = image.shape[0]
    cut = round(size * (1 - MIDDLE) / 2)
    return image[cut : size - cut, cut : size - cut]


def picture(run: Path, target: Path) -> None:
    """All methods on the scene of median gain of each class, in blocks of a row of images above a row of residuals."""
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    scores = {row["model"]: row["psnr_db"]["mean"] for row in metrics["rows"]}
    networks = [row["model"] for row in metrics["rows"] if row["kind"] == "network" and not row.get("self_ensemble")]
    methods = ["bicubic", *sorted(networks, key=lambda name: scores[name])]
    panels = ["LR", *methods, "truth"]
    blocks = [panels[first : first + COLUMNS] for first in range(0, len(panels), COLUMNS)]
    with h5py.File(run / "evaluate" / "examples.h5") as file:
        rows = np.flatnonzero(file["quantile"][()] == 0.5)
        classes = [str(file.attrs["classes"][label]) for label in file["label"][rows]]
        figure = Figure(figsize=(1.6 * COLUMNS, 3.45 * len(blocks) * len(rows)), layout="constrained")
        grid = figure.subplots(2 * len(blocks) * len(rows), COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for place, (row, kind) in enumerate(zip(rows, classes, strict=True)):
            lr, hr = file["lr"][row, 0], file["hr"][row, 0]
            scale = hr.shape[0] // lr.shape[0]
            noise = float(np.median(file["lr_noise"][row])) / scale**2
            images = {name: file[f"sr/{name}"][row, 0] for name in methods} | {"LR": lr / scale**2, "truth": hr}
            for number, block in enumerate(blocks):
                upper, lower = grid[2 * (place * len(blocks) + number) :][:2]
                for name, image_axes, residual_axes in zip(block, upper, lower, strict=False):
                    image_axes.set_axis_on()
                    show(
                        image_axes,
                        middle(images[name]),
                        noise,
                        float(hr.max()),
                        f"{kind}: LR" if name == "LR" else name,
                    )
                    if name in methods:
                        residual_axes.set_axis_on()
                        residual = middle(images[name] - hr) / noise
                        drawn = residual_axes.imshow(residual, origin="lower", cmap="RdBu_r", vmin=-5, vmax=5)
                        error = float(np.sqrt(np.mean((images[name] - hr) ** 2))) / noise
                        residual_axes.set_title(f"rms {error:.2f} σ", fontsize=8)
                        residual_axes.set_xticks([])
                        residual_axes.set_yticks([])
        label = "(method − truth) / noise of the LR image per HR pixel"
        figure.colorbar(drawn, ax=grid, location="bottom", shrink=0.4, aspect=40, pad=0.01, label=label)
    figure.savefig(target, dpi=100, bbox_inches="tight")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("tables")
    one.add_argument("results", type=Path)
    one.add_argument("page", type=Path)
    other = kinds.add_parser("figure")
    other.add_argument("run", type=Path)
    other.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    if options.kind == "tables":
        tables(options.results, options.page)
    else:
        options.target.parent.mkdir(parents=True, exist_ok=True)
        picture(options.run, options.target)


if __name__ == "__main__":
    main()
