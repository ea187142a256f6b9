"""Make the tables and figures of docs/ceiling.md from what `python -m benchmarks.zoo --config signal-to-noise` left.

    python docs/make_ceiling.py docs/results/signal-to-noise-cpu docs/ceiling.md docs/figures

Fills the parts of the page between `<!-- begin NAME -->` and `<!-- end NAME -->`: `about`, `all` and, for each S/N,
`sn-10` and so on; draws efficiency.png, efficiency against parameters, and coverage.png, of posteriors.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from make_results import describe, fill, read_results, table
from make_tables import interval

from sr.report_ceiling import draw_efficiency
from sr.report_figures import INK, STYLE
from sr.report_trust import draw_coverage

Record = dict[str, Any]
COLUMNS = (
    ("psnr_db", "PSNR (dB)", 2, 1),
    ("psnr_against_best_db", "against the best network (dB)", 2, 1),
    ("efficiency", "η", 3, 1),
    ("chi2_per_pixel", "χ²/N", 3, 1),
    ("absolute_arc_flux_error", "arc flux error (%)", 2, 100),
    ("ellipticity_error", "ellipticity error (10⁻³)", 2, 1000),
    ("absolute_theta_e_error", "θ_E error (10⁻³)", 2, 1000),
    ("substructure_error", "residual error", 2, 1),
)
"""Score, title, decimals, factor."""
PRINTED = {key: "black" if value == INK else value for key, value in STYLE.items()}


def cells(scores: dict[str, Any]) -> list[str]:
    """Those of a row, of the scores of one group of scenes."""
    return [interval(scores[key], decimals, factor) if key in scores else "–" for key, _, decimals, factor in COLUMNS]


def group_table(records: list[Record], ceiling: Record, group: str) -> list[str]:
    """Every method at one S/N ("all": all of them), the bounds first, then by falling PSNR."""

    def scores(one: Record) -> dict[str, Any]:
        return one if group == "all" else one["per_signal_to_noise"][group]

    rows = [["method", "parameters", *(title for _, title, _, _ in COLUMNS)]]
    rows += [[row["model"], "–", *cells(scores(row))] for row in ceiling["bounds"]]
    ranked = sorted(records, key=lambda record: -scores(record["scores"])["psnr_db"]["mean"])
    for record in ranked:
        count = f"{record['parameters']:,}" if record["parameters"] else "–"
        found = {**scores(record["scores"]), "efficiency": record["efficiency"][group]}
        rows.append([record["model"], count, *cells(found)])
    return table(rows)


def about(records: list[Record], ceiling: Record) -> list[str]:
    """What all tables are of."""
    accepted, field = (f"{100 * ceiling[key]:.0f} %" for key in ("accepted", "with_field"))
    counts = ", ".join(f"{count} at {name}" for name, count in ceiling["groups"].items() if name != "all")
    captured = ", ".join(f"{100 * share:.1f} % for {name}" for name, share in ceiling["captured"].items())
    return [
        describe(records),
        "",
        f"The oracle and the bounds are of {ceiling['scenes']} of the scenes ({counts}). {accepted} of the fits were "
        f"accepted; the data preferred a field of substructure in {field}. The modes of the field have of the squared "
        f"deflection {captured}.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("results", "page", "figures"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args(arguments)
    records, _ = read_results(options.results)
    ceiling = json.loads((options.results / "ceiling.json").read_text(encoding="utf-8"))
    parts = {"about": about(records, ceiling)}
    for group in ceiling["groups"]:
        parts[group.lower().replace("/", "").replace(" ", "-")] = group_table(records, ceiling, group)
    page = fill(options.page.read_text(encoding="utf-8"), parts)
    options.page.write_text(page, encoding="utf-8")
    content = {**ceiling, "efficiency": {record["model"]: record["efficiency"] for record in records}}
    coverage = {record["model"]: record["coverage"] for record in records if "coverage" in record}
    with mpl.rc_context(PRINTED):
        draw_efficiency(content, records).savefig(options.figures / "efficiency.png", dpi=100)
        if coverage:
            draw_coverage(coverage).savefig(options.figures / "coverage.png", dpi=100)


if __name__ == "__main__":
    main()
