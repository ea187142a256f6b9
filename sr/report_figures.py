"""The charts of the report, as SVG that takes the colour of the page's text and so suits light and dark alike."""

import base64
import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image

INK = "#010203"  # stands for the colour of the text until the figure is in the page
COLOURS = ("#3b86c8", "#e0862b", "#2a9d76", "#c9528c", "#8b70d6", "#a3843c", "#4bb0c4", "#d1495b")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sharplens",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    **{
        key: INK
        for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    },
}


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an SVG element; `name` keeps its ids apart from those of other figures of the page."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stub knows the keys as literals only
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="image\w+"', "", text)  # equal images would have equal ids
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text).replace(INK, "currentColor")
    text = re.sub(r"(?<=data:image/png;base64,)[^\"]+", lambda match: _with_palette(match[0]), text)
    label = f'<svg role="img" aria-label="{escape(description)}"'
    return Markup(text.replace("<svg", label, 1))  # noqa: S704 - made by matplotlib, which escapes its texts


def _with_palette(encoded: str) -> str:
    """The same PNG (base64) with a palette: a colour map has at most 256 colours, and the file shrinks to a third."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    colours, index = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256:
        return encoded
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.astype(np.uint8).tobytes(), "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def training_curves(models: dict[str, dict[str, Any]], bicubic_psnr_db: float | None) -> Markup:
    """Loss and validation PSNR of each model against the step."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = _figure(10, 3.6)
        loss, quality = figure.subplots(1, 2)
        for (name, model), colour in zip(models.items(), _colours(len(models)), strict=True):
            step = [point["step"] for point in model["curve"]]
            loss.plot(step, [point["loss"] for point in model["curve"]], color=colour, marker=".", label=name)
            quality.plot(step, [point["psnr_db"] for point in model["curve"]], color=colour, marker=".", label=name)
        if bicubic_psnr_db is not None:
            quality.axhline(bicubic_psnr_db, color=INK, linestyle=":", linewidth=1, label="bicubic")
        loss.set(xlabel="step", ylabel="training loss (normalised)", yscale="log")
        quality.set(xlabel="step", ylabel="validation PSNR (dB)")
        figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8.5)
    return to_svg(figure, "training", "Training loss and validation PSNR of each model against the training step")


def spectra_by_scale(spectra: dict[str, Any], names: list[str]) -> Markup:
    """Power-spectrum transfer and cross-correlation with the truth of some methods, by spatial frequency."""
    nyquist = spectra["lr_nyquist_cycles_per_arcsec"]
    frequency = nyquist * np.array(spectra["frequency_lr_nyquist"])
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = _figure(10, 3.8)
        panels = figure.subplots(1, 2, sharex=True)
        for axes, key in zip(panels, ("power_transfer", "cross_correlation"), strict=True):
            for place, name in enumerate(names):
                curve, colour = spectra["methods"][name][key], COLOURS[place]
                style = "-" if place == 0 else ("--", ":")[place % 2]  # curves may lie on one another
                axes.plot(frequency, curve["mean"], style, color=colour, label=name)
                axes.fill_between(frequency, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
            axes.axvline(nyquist, color=INK, linestyle=":", linewidth=1)
            axes.axhline(1, color=INK, linestyle=":", linewidth=1)
            axes.set(xlabel="spatial frequency (cycles per arcsec)", xlim=(0, None))
        panels[0].set(ylabel="transfer, √(power / true power)", yscale="log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panels[0].minorticks_off()
        panels[1].set(ylabel="correlation with the truth", ylim=(None, 1.05))
        panels[1].annotate(
            "LR Nyquist", (nyquist, 0), (4, 4), xycoords=("data", "axes fraction"), textcoords="offset points"
        )
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8.5
        )
    return to_svg(figure, "spectra", "Power-spectrum transfer and correlation with the truth by spatial frequency")


def auc_intervals(rows: list[dict[str, Any]], controls: list[dict[str, Any]]) -> Markup:
    """AUC of each representation and control with intervals and the chance line; difference from interpolated LR."""
    shown = [*rows, *(control for control in controls if "auc" in control)]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = _figure(10, 0.9 + 0.3 * len(shown))
        left, right = figure.subplots(1, 2, sharey=True)
        colours = [*_colours(len(rows)), *[INK] * (len(shown) - len(rows))]
        for place, (row, colour) in enumerate(zip(shown, colours, strict=True)):
            _point(left, place, row["auc"], colour)
            if row.get("kind", "interpolated") != "interpolated":
                _point(right, place, row["auc_difference_from_lr"], colour)
        left.axvline(0.5, color=INK, linestyle=":", linewidth=1)
        left.annotate("chance", (0.5, 1), (3, 1), xycoords=("data", "axes fraction"), textcoords="offset points")
        right.axvline(0, color=INK, linestyle=":", linewidth=1)
        names = [row["name"] if place < len(rows) else f"({row['name']})" for place, row in enumerate(shown)]
        left.set(xlabel="macro AUC", yticks=range(len(shown)), yticklabels=names, ylim=(len(shown) - 0.4, -0.6))
        right.set(xlabel="AUC minus that of interpolated LR, paired")
    return to_svg(figure, "auc", "AUC of each representation and control, and differences from interpolated LR")


def _point(axes: Axes, place: int, value: dict[str, float], colour: str) -> None:
    axes.plot([value["low"], value["high"]], [place, place], color=colour, solid_capstyle="round", linewidth=2.2)
    axes.plot(value["mean"], place, marker="o", color=colour, markersize=6)


def roc_curves(rows: list[dict[str, Any]], classes: list[str]) -> Markup:
    """One panel a class: that class against the rest, a curve for each representation."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = _figure(10, 4.2)
        panels = np.atleast_1d(figure.subplots(1, len(classes), sharey=True))
        for axes, name in zip(panels, classes, strict=True):
            for row, colour in zip(rows, _colours(len(rows)), strict=True):
                roc = row["roc"][name]
                axes.plot(roc["false_positive_rate"], roc["true_positive_rate"], color=colour, label=row["name"])
            axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
            axes.set(title=f"{name} against the rest", xlabel="false positive rate", aspect="equal")
        panels[0].set(ylabel="true positive rate")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(rows), 6), fontsize=8.5)
    return to_svg(figure, "roc", "ROC curves of each class against the rest, one curve for each representation")


def confusion_matrices(rows: list[dict[str, Any]], classes: list[str]) -> Markup:
    """One matrix a representation: true class down, predicted class across, in per cent of the true class."""
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False, "font.size": 8.5}):  # type: ignore[dict-item]
        figure = _figure(2.2 * columns, 2.3 * lines + 0.3)
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes in panels[len(rows) :]:
            axes.remove()
        for axes, row in zip(panels, rows, strict=False):
            counts = np.array(row["confusion"], dtype=float)
            share = 100 * counts / counts.sum(1, keepdims=True).clip(1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
            for (y, x), value in np.ndenumerate(share):
                colour = "white" if value > 55 else "#1b1b1b"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour)
            axes.set(title=row["name"], xticks=range(len(classes)), yticks=range(len(classes)))
            axes.set(xticklabels=classes, yticklabels=classes)
            axes.tick_params(length=0)
        figure.supylabel("true class", fontsize=8.5)
        figure.supxlabel("predicted class (% of the true class)", fontsize=8.5)
    return to_svg(figure, "confusion", "Confusion matrix of each representation")


def _colours(count: int) -> list[str]:
    return [COLOURS[one % len(COLOURS)] for one in range(count)]
