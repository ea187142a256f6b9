"""The figure of how near methods come to the ceiling: efficiency against the number of parameters."""

from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report_figures import COLOURS, STYLE, to_svg


def efficiency_by_parameters(ceiling: dict[str, Any], rows: list[dict[str, Any]]) -> Markup:
    """`draw_efficiency` for the report."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stub knows the keys as literals only
        figure = draw_efficiency(ceiling, rows)
    return to_svg(figure, "efficiency", "Efficiency of each method against its number of parameters, by S/N")


def draw_efficiency(ceiling: dict[str, Any], rows: list[dict[str, Any]]) -> Figure:
    """A panel for all scenes and one for each S/N; methods without parameters are lines.

    `ceiling` is `ceiling_content`, `rows` are those of metrics.json.
    """
    shown = [row for row in rows if not row.get("self_ensemble") and row["model"] != "bicubic"]
    groups = list(ceiling["groups"])
    figure = Figure(figsize=(3.0 * len(groups), 4.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        for place, row in enumerate(shown):
            _mark(axes, row, ceiling["efficiency"][row["model"]][group], place)
        axes.axhline(1, color=mpl.rcParams["text.color"], linestyle=":", linewidth=1)
        axes.set(xscale="log", xlabel="parameters", title=f"{group} ({ceiling['groups'][group]} scenes)")
    panels[0].set(ylabel="efficiency (bicubic 0, oracle 1)", ylim=(None, 1.05))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _mark(axes: Axes, row: dict[str, Any], value: dict[str, float], place: int) -> None:
    colour, mean = COLOURS[place % len(COLOURS)], value["mean"]
    if not row["parameters"]:
        axes.axhline(mean, color=colour, linestyle="--", linewidth=1, label=row["model"])
        return
    marker = "os^Dv"[place // len(COLOURS) % 5]
    spread = [[mean - value["low"]], [value["high"] - mean]]
    axes.errorbar(row["parameters"], mean, spread, fmt=marker, color=colour, markersize=5, label=row["model"])
