"""The pictures of the report: every grid has one asinh stretch, and residuals have a symmetric scale."""

from pathlib import Path
from typing import Any

import h5py
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure

from simulate.shards import Pairs

from .report_figures import STYLE, to_svg

PANEL_INCHES = 1.32
GAP_INCHES = 0.07
IMAGE_COLOURS, RESIDUAL_COLOURS = "inferno", "RdBu_r"


class PictureGrid:
    """Square panels in rows and columns, with titles above, labels at the left and colour bars at the right."""

    def __init__(self, rows: int, columns: int, title_lines: int = 1) -> None:
        step = PANEL_INCHES + GAP_INCHES
        self.left, self.top = 0.85, 0.15 + 0.16 * title_lines
        self.width = self.left + columns * step + 0.95
        self.height = self.top + rows * step + 0.05
        self.figure = Figure(figsize=(self.width, self.height))

    def panel(self, row: int, column: int) -> Axes:
        step = PANEL_INCHES + GAP_INCHES
        x, y = self.left + column * step, self.height - self.top - row * step - PANEL_INCHES
        size = (PANEL_INCHES / self.width, PANEL_INCHES / self.height)
        axes = self.figure.add_axes((x / self.width, y / self.height, *size))
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return axes

    def show(self, row: int, column: int, image: np.ndarray, norm: Normalize, colours: str = IMAGE_COLOURS) -> None:
        self.panel(row, column).imshow(image, norm=norm, cmap=colours, origin="lower", interpolation="none")

    def title(self, column: int, text: str) -> None:
        x = self.left + column * (PANEL_INCHES + GAP_INCHES) + PANEL_INCHES / 2
        y = (self.height - self.top + 0.07) / self.height
        self.figure.text(x / self.width, y, text, ha="center", va="bottom", fontsize=9)

    def label(self, row: int, text: str) -> None:
        y = self.height - self.top - row * (PANEL_INCHES + GAP_INCHES) - PANEL_INCHES / 2
        self.figure.text((self.left - 0.1) / self.width, y / self.height, text, ha="right", va="center", fontsize=9)

    def colour_bar(self, first: int, last: int, norm: Normalize, colours: str, label: str) -> None:
        """A bar at the right of rows `first` to `last`."""
        step = PANEL_INCHES + GAP_INCHES
        bottom = self.height - self.top - last * step - PANEL_INCHES
        height = (last - first) * step + PANEL_INCHES
        x = (self.width - 0.9) / self.width
        axes = self.figure.add_axes((x, bottom / self.height, 0.1 / self.width, height / self.height))
        self.figure.colorbar(ScalarMappable(norm, colours), cax=axes, label=label)
        if isinstance(norm, AsinhNorm) and norm.vmax is not None:
            powers = 10.0 ** np.arange(np.ceil(np.log10(2 * norm.linear_width)), np.log10(norm.vmax))
            axes.set_yticks([0, *powers], ["0", *(f"{power:g}" for power in powers)])
        axes.tick_params(labelsize=7.5, length=2)
        axes.minorticks_off()


def _stretch(truth: np.ndarray, noise: float) -> AsinhNorm:
    """Linear around the noise, logarithmic above; up to what all but 0.1 % of the true pixels stay below."""
    return AsinhNorm(linear_width=2 * noise, vmin=-2 * noise, vmax=max(float(np.quantile(truth, 0.999)), 4 * noise))


def _brightness_label(unit: str) -> str:
    return f"{unit} arcsec⁻²"


def data_strip(pairs: Pairs, per_class: int = 2) -> Markup:
    """The first scenes of each class: truth, as the HR instrument sees it, as the LR instrument sees it."""
    chosen = [row for label in range(len(pairs.classes)) for row in np.flatnonzero(pairs.label == label)[:per_class]]
    area_hr, area_lr = pairs.hr_band.pixel_scale_arcsec**2, pairs.lr_band.pixel_scale_arcsec**2
    noise = float(np.median(pairs.lr_noise[chosen])) / area_lr
    norm = _stretch(pairs.hr[chosen] / area_hr, noise)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        grid = PictureGrid(3, len(chosen))
        for column, row in enumerate(chosen):
            grid.title(column, pairs.classes[pairs.label[row]])
            images = (pairs.hr[row] / area_hr, pairs.hr_noisy[row] / area_hr, pairs.lr[row] / area_lr)
            for place, image in enumerate(images):
                grid.show(place, column, image[0], norm)
        for place, text in enumerate(("truth", "HR", "LR")):
            grid.label(place, text)
        grid.colour_bar(0, 2, norm, IMAGE_COLOURS, _brightness_label(pairs.unit))
    return to_svg(grid.figure, "data", "Simulated lenses of each class: truth, high resolution and low resolution")


def example_pictures(path: Path, quantile: float, name: str) -> Markup:
    """RUN/evaluate/examples.h5: a scene per class at `quantile` of the gain; each method, and its residual below."""
    with h5py.File(path) as file:
        rows = np.flatnonzero(file["quantile"][()] == quantile)
        classes, methods = list(file.attrs["classes"]), [str(one) for one in file.attrs["methods"]]
        methods = [one for one in methods if one not in ("bilinear", "blur control")]
        area_hr, area_lr = (file.attrs[f"{side}_pixel_scale_arcsec"] ** 2 for side in ("hr", "lr"))
        hr, lr = file["hr"][()][rows, 0] / area_hr, file["lr"][()][rows, 0] / area_lr
        noise = float(np.median(file["lr_noise"][()][rows])) / area_lr
        predictions = {one: file[f"sr/{one}"][()][rows, 0] / area_hr for one in methods}
        labels = [classes[one] for one in file["label"][()][rows]]
        unit = str(file.attrs["unit"])
    return _compare(lr, hr, predictions, labels, noise, _brightness_label(unit), name)


def transfer_pictures(path: Path, count: int = 3) -> Markup:
    """RUN/transfer/examples.h5: the first objects; bicubic, and each model's zero-shot, fine-tuned and unpretrained."""
    with h5py.File(path) as file:
        scale = int(file.attrs["scale"])
        lr, mask = file["lr"][:count, 0], file["hr_mask"][:count, 0]
        hr = np.where(mask, file["hr"][:count, 0], np.nan) * scale**2
        noise = float(np.median(file["lr_noise"][:count]))
        predictions = {"bicubic": file["prediction/-/bicubic"][:count, 0] * scale**2}
        for model in file["prediction"]:
            for variant in ("zero-shot", "fine-tuned", "unpretrained"):
                if f"{model}/{variant}" in file["prediction"]:
                    images = file[f"prediction/{model}/{variant}"][:count, 0]
                    predictions[f"{model}\n{variant}"] = images * scale**2
        labels = [str(one)[:14] for one in file["object"].asstr()[:count]]
        unit = str(file.attrs["unit"])
    return _compare(lr, hr, predictions, labels, noise, f"{unit} per LR pixel", "transfer")


def _compare(
    lr: np.ndarray,
    hr: np.ndarray,
    predictions: dict[str, np.ndarray],
    labels: list[str],
    noise: float,
    unit: str,
    name: str,
) -> Markup:
    """LR (n,h,w), each prediction and HR (n,H,W), all surface brightness, with (prediction - HR) / noise below."""
    residuals: dict[str, Any] = {key: (images - hr) / noise for key, images in predictions.items()}
    limit = max(1.0, float(np.ceil(np.nanquantile(np.abs(residuals["bicubic"]), 0.995))))
    norm, residual_norm = _stretch(hr[np.isfinite(hr)], noise), Normalize(-limit, limit)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        lines = 1 + max(text.count("\n") for text in predictions)
        grid = PictureGrid(2 * len(hr), len(predictions) + 2, lines)
        for column, text in enumerate(("LR", *predictions, "HR")):
            grid.title(column, text)
        for row in range(len(hr)):
            grid.label(2 * row, labels[row])
            grid.label(2 * row + 1, "residual")
            for column, image in enumerate((lr[row], *(images[row] for images in predictions.values()), hr[row])):
                grid.show(2 * row, column, image, norm)
            for column, residual in enumerate(residuals.values(), start=1):
                grid.show(2 * row + 1, column, residual[row], residual_norm, RESIDUAL_COLOURS)
        grid.colour_bar(0, len(hr) - 1, norm, IMAGE_COLOURS, unit)
        grid.colour_bar(len(hr), 2 * len(hr) - 1, residual_norm, RESIDUAL_COLOURS, "residual / LR noise")
    return to_svg(grid.figure, name, "Low resolution, reconstructions, high resolution, and residuals")
