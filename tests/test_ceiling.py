"""The ceiling as `evaluate` reports it: efficiency, groups by S/N, what is kept, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sr.ceiling
from simulate.generate import SimulateSettings, simulate_run
from simulate.settings import parse_settings
from simulate.shards import Pairs, manifest_sha256, read_pairs
from sr.ceiling import CEILING_NAME, ceiling_of_run, efficiency
from sr.evaluate import EvaluateSettings, evaluate_run
from sr.signal_to_noise import peak_signal_to_noise, signal_to_noise_groups

from .conftest import blob_pairs, write_dataset

CPU = torch.device("cpu")
QUICK = {"scenes": 4, "fit": {"draws": 256}, "modes": 30, "field_draws": 40}


def test_efficiency_is_the_share_of_the_gap() -> None:
    rng = np.random.default_rng(0)
    bicubic = np.array([30.0, 32.0, 34.0, 20.0])
    oracle = bicubic + np.array([20.0, 10.0, 30.0, 20.0])
    half = bicubic + np.array([10.0, 5.0, 15.0, 10.0])
    assert efficiency(half, bicubic, oracle, rng) == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert efficiency(bicubic, bicubic, oracle, rng)["mean"] == 0
    assert efficiency(oracle, bicubic, oracle, rng)["mean"] == 1


def test_scenes_are_grouped_by_what_exposures_were_made_for() -> None:
    pairs = blob_pairs(6, seed=1)
    asked = [10, 30, 10, 30, 30, 10]
    named = replace(pairs, name=tuple(json.dumps({"lr_peak_signal_to_noise": one}) for one in asked))
    groups = signal_to_noise_groups(named)
    assert {name: np.flatnonzero(own).tolist() for name, own in groups.items()} == {
        "S/N 10": [0, 2, 5],
        "S/N 30": [1, 3, 4],
    }


def test_else_by_thirds_of_what_is_measured() -> None:
    pairs = blob_pairs(9, seed=1)
    measured = np.array([(lr / noise).max() for lr, noise in zip(pairs.lr, pairs.lr_noise, strict=True)])
    np.testing.assert_allclose(peak_signal_to_noise(pairs), measured)
    groups = signal_to_noise_groups(pairs)
    ranks = measured.argsort().argsort()
    assert [sorted(ranks[own].tolist()) for own in groups.values()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ceiling")
    content = {
        "counts": {"train": 2, "val": 2, "test": 8},
        "classes": ["cdm", "none"],
        "hr_size": 48,
        "scene": {"supersampling": 1},
        "lr_peak_signal_to_noise": {"choice": [10, 100]},
    }
    simulate_run(folder, parse_settings(SimulateSettings, content, "test"), 3, False, 1, verify=0)
    return folder


def test_evaluation_reports_the_ceiling(run: Path) -> None:
    settings = parse_settings(EvaluateSettings, {"ceiling": QUICK}, "test")
    metrics = evaluate_run(run, settings, 0, CPU, resume=False)
    ceiling, rows = metrics["ceiling"], {row["model"]: row for row in metrics["rows"]}
    assert set(rows["bicubic"]["per_signal_to_noise"]) == {"S/N 10", "S/N 100"}
    assert ceiling["groups"] == {"all": 4, **{name: ceiling["groups"][name] for name in ("S/N 10", "S/N 100")}}
    assert ceiling["groups"]["S/N 10"] + ceiling["groups"]["S/N 100"] == 4
    assert set(ceiling["efficiency"]) == set(rows)
    assert ceiling["efficiency"]["bicubic"]["all"]["mean"] == 0
    assert 0 < ceiling["efficiency"]["richardson-lucy"]["all"]["mean"] < 1
    oracle, bound, field = ceiling["bounds"]
    # an S/N of ten times as much is 20 dB; the oracle and the bounds are of other lenses in the two groups
    for row in (oracle, bound, field):
        low, high = (row["per_signal_to_noise"][name]["psnr_db"]["mean"] for name in ("S/N 10", "S/N 100"))
        assert 8 < high - low < 32
    assert field["psnr_db"]["mean"] <= bound["psnr_db"]["mean"]
    assert oracle["absolute_theta_e_error"]["mean"] < rows["blur control"]["absolute_theta_e_error"]["mean"]
    assert metrics["references"][0]["absolute_theta_e_error"]["mean"] < 5e-3
    assert oracle["chi2_per_pixel"]["mean"] == pytest.approx(1, abs=0.15)
    test = read_pairs(run / "data", "test")
    kept = _kept(run, test, metrics["data_range"])
    mse = ((kept.hr - test.hr[:4]) ** 2).mean((1, 2, 3))
    psnr_db = 10 * np.log10(metrics["data_range"] ** 2 / mse)
    assert oracle["psnr_db"]["mean"] == pytest.approx(psnr_db.mean(), rel=1e-5)


def _kept(run: Path, test: Pairs, data_range: float) -> sr.ceiling.Ceiling:
    settings = parse_settings(EvaluateSettings, {"ceiling": QUICK}, "test").ceiling
    return ceiling_of_run(run, test, data_range, settings, 0, CPU, manifest_sha256(run / "data"))


def test_what_was_measured_is_kept_until_the_settings_change(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = read_pairs(run / "data", "test")
    settings = parse_settings(EvaluateSettings, {"ceiling": {**QUICK, "scenes": 2}}, "test").ceiling
    more = (test, 1.0, settings, 0, CPU, manifest_sha256(run / "data"))
    first = ceiling_of_run(run, *more)
    monkeypatch.setattr(sr.ceiling, "measure_ceiling", None)
    again = ceiling_of_run(run, *more)
    np.testing.assert_array_equal(first.hr, again.hr)
    assert again.captured == first.captured
    with pytest.raises(TypeError, match="not callable"):
        ceiling_of_run(run, test, 2.0, *more[2:])
    (run / "evaluate" / CEILING_NAME).write_bytes(b"damaged")
    with pytest.raises(TypeError, match="not callable"):
        ceiling_of_run(run, *more)


def test_data_without_a_lens_model_have_no_ceiling(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {split: blob_pairs(3, seed=1) for split in ("train", "val", "test")})
    metrics = evaluate_run(tmp_path, EvaluateSettings(), 0, CPU, resume=False)
    assert "cannot be fitted" in metrics["ceiling"]["missing"]
    assert "efficiency" not in metrics["ceiling"]


def test_no_scenes_no_ceiling(run: Path) -> None:
    settings = parse_settings(EvaluateSettings, {"ceiling": {"scenes": 0}, "uncertainty": {"noise_images": 2}}, "test")
    assert evaluate_run(run, settings, 0, CPU, resume=False)["ceiling"] == {"missing": "evaluate.ceiling.scenes is 0"}
