"""The report's figure of posteriors: do draws cover the truth as often as they say?"""

from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report_figures import COLOURS, STYLE, to_svg

REGIONS = {"light": ("o-", "light"), "sky": ("s--", "empty sky")}


def coverage_curves(coverage: dict[str, Any]) -> Markup:
    """`draw_coverage` for the report."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stub knows the keys as literals only
        figure = draw_coverage(coverage)
    return to_svg(figure, "coverage", "Expected and observed coverage of posterior draws; predicted and actual error")


def draw_coverage(coverage: dict[str, Any]) -> Figure:
    """Of each model in `coverage_scores`: pixels, TARP, and the error against the predicted standard deviation."""
    ink = mpl.rcParams["text.color"]
    with mpl.rc_context({"lines.markersize": 3}):
        figure = Figure(figsize=(10, 4.1), layout="constrained")
        pixels, tarp, sigma = figure.subplots(1, 3)
        for place, (name, scores) in enumerate(coverage.items()):
            colour = COLOURS[place % len(COLOURS)]
            if scores.get("independent_pixels"):
                name += " (independent pixels)"
            for region, (style, title) in REGIONS.items():
                if region in scores["pixels"]:
                    measured = scores["pixels"][region]
                    _curve(pixels, measured, style, colour, f"{name}, {title}")
                    sigma.plot(measured["sigma"]["predicted"], measured["sigma"]["actual"], style, color=colour)
            _curve(tarp, scores["tarp"], "o-", colour, name)
        for axes in (pixels, tarp):
            axes.plot([0, 1], [0, 1], color=ink, linestyle=":", linewidth=1)
            axes.set(xlabel="credible level", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        pixels.set(title="pixels", ylabel="share that holds the truth")
        tarp.set(title="flux in cells of the light (TARP)")
        positive = [value for line in sigma.lines for value in (*line.get_xdata(), *line.get_ydata()) if value > 0]
        if positive:
            limits = (min(positive) / 1.3, max(positive) * 1.3)
            sigma.plot(limits, limits, color=ink, linestyle=":", linewidth=1)
            sigma.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
        sigma.set(title="standard deviation (LR noise)", xlabel="predicted", ylabel="actual error")
        handles, labels = pixels.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _curve(axes: Axes, measured: dict[str, Any], style: str, colour: str, label: str) -> None:
    level, observed = measured["expected"], measured["observed"]
    axes.plot(level, observed["mean"], style, color=colour, label=label)
    axes.fill_between(level, observed["low"], observed["high"], color=colour, alpha=0.18, linewidth=0)
