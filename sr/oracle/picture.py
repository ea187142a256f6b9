"""The picture of a fit: data, model, residual, and the model at high resolution with its error."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

RESIDUAL_LIMIT = 5.0


def draw_picture(path: Path, data: np.ndarray, maps: dict[str, np.ndarray], content: dict[str, Any]) -> None:
    """Write a PNG of `data` (h,w) and the `maps` of `image_result.write_result`; `content` is that of fit.json."""
    top = float(np.nanquantile(maps["MODEL"], 0.999))
    per_pixel = maps["HR_MODEL"].max() / max(maps["MODEL"].max(), 1e-300)

    def root(brightest: float) -> PowerNorm:
        """Arcs are faint beside their lens."""
        return PowerNorm(0.5, 0, brightest, clip=True)

    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("data", data, {"norm": root(top)}),
        ("model", maps["MODEL"], {"norm": root(top)}),
        (
            "(data - model) / noise",
            maps["RESIDUAL"],
            {"vmin": -RESIDUAL_LIMIT, "vmax": RESIDUAL_LIMIT, "cmap": "RdBu_r"},
        ),
        ("model, high resolution", maps["HR_MODEL"], {"norm": root(top * per_pixel)}),
        ("its 1-sigma error", maps["HR_SIGMA"], {"norm": root(float(maps["HR_SIGMA"].max()))}),
    ]
    figure = Figure(figsize=(3.1 * len(panels), 3.4), layout="constrained")
    scale, (origin_x, origin_y), (height, width) = (
        content["pixel_scale_arcsec"],
        content["origin_fits_pixel"],
        data.shape,
    )
    edges = [scale * (edge - origin) for edge, origin in ((0.5, origin_x), (width + 0.5, origin_x))]
    edges += [scale * (edge - origin) for edge, origin in ((0.5, origin_y), (height + 0.5, origin_y))]
    for axes, (title, image, look) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        shown = axes.imshow(image, origin="lower", extent=tuple(edges), **{"cmap": "inferno", **look})
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("arcsec")
        figure.colorbar(shown, ax=axes, shrink=0.75)
    verdict = "accepted" if content["accepted"] else "NOT accepted"
    figure.suptitle(f"chi^2 / degree of freedom {content['chi2_per_degree']:.3f}: {verdict}", fontsize=10)
    figure.savefig(path, format="png", dpi=110)
