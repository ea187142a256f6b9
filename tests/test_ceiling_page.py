"""The page about the ceiling: tables and figures from results files."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from simulate.shards import write_json

GROUPS = {"all": 4, "S/N 10": 2, "S/N 100": 2}
SCORES = ("psnr_db", "psnr_against_best_db", "chi2_per_pixel", "absolute_arc_flux_error", "ellipticity_error")


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.5, "high": mean + 0.5}


def scores(mean: float) -> dict[str, Any]:
    found = {name: value(mean) for name in SCORES}
    return {
        **found,
        "per_signal_to_noise": {name: {key: value(mean + 1) for key in SCORES} for name in list(GROUPS)[1:]},
    }


def write_results(folder: Path) -> None:
    about = {
        "data_sha256": "0",
        "evaluated_on": "cpu",
        "config": "test",
        "overrides": [],
        "counts": {"train": 20},
        "scenes": 4,
        "machine": {"date": "2026-11-23", "cpu": "a CPU", "cores": 2, "versions": {"torch": "2.13"}},
    }
    for name, parameters, mean in (("bicubic", 0, 30.0), ("small", 5_000, 40.0), ("large", 300_000, 45.0)):
        record = {"model": name, "kind": "network", "mixed": False, "parameters": parameters, **about}
        efficiency = {group: value((mean - 30) / 20) for group in GROUPS}
        write_json(folder / f"{name}.json", {**record, "scores": scores(mean), "efficiency": efficiency})
    bounds = [
        {"model": "oracle", **scores(50.0)},
        {
            "model": "bound",
            "psnr_db": value(52),
            "per_signal_to_noise": {name: {"psnr_db": value(53)} for name in GROUPS},
        },
    ]
    shares = {"accepted": 1.0, "with_field": 0.25, "captured": {"cdm": 0.987}}
    write_json(folder / "ceiling.json", {"kind": "ceiling", "scenes": 4, "groups": GROUPS, "bounds": bounds, **shares})


def test_every_method_at_every_signal_to_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    import make_ceiling

    write_results(tmp_path / "results")
    page = tmp_path / "ceiling.md"
    parts = ("about", "all", "sn-10", "sn-100")
    page.write_text("".join(f"# {part}\n<!-- begin {part} -->old<!-- end {part} -->\n" for part in parts))
    make_ceiling.main([str(tmp_path / "results"), str(page), str(tmp_path)])
    about, everything, low, _ = page.read_text().split("# ")[1:]
    assert "2 at S/N 10, 2 at S/N 100" in about
    assert "98.7 % for cdm" in about
    names = [line.split(" | ")[0][2:] for line in everything.splitlines() if line.startswith("| ")]
    assert names == ["method", "oracle", "bound", "large", "small", "bicubic"]
    row = next(line for line in low.splitlines() if line.startswith("| large"))
    assert row.split(" | ")[1:5] == ["300,000", "46.00 [45.50, 46.50]", "46.00 [45.50, 46.50]", "0.750 [0.250, 1.250]"]
    bound = next(line for line in low.splitlines() if line.startswith("| bound"))
    assert bound.split(" | ")[2:4] == ["53.00 [52.50, 53.50]", "–"]
    image = imread(tmp_path / "efficiency.png")
    assert image.shape[1] > 3 * 250
    assert image[..., :3].std() > 0.05
    assert not (tmp_path / "coverage.png").exists()  # no model has a posterior
    assert "coverage" not in json.loads((tmp_path / "results" / "large.json").read_text())
