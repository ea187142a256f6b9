"""The script behind the results: slices that resume, files that say what evaluation says, tables, shipped weights."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import benchmarks.ship_weights
import benchmarks.zoo
import benchmarks.zoo_results
import sr.trainer
from benchmarks.ship_weights import ship
from benchmarks.zoo import FINISHED, MORE_TO_DO, main
from simulate.errors import InputError
from simulate.shards import Pairs, manifest_sha256, read_pairs
from sr.metrics import data_range_of, image_scores
from sr.model_folder import load_model, save_model
from sr.shipped import validation_psnr_db
from sr.stages import read_metrics
from sr.trained_model import TrainedModel

from .conftest import blob_pairs, write_dataset

CPU = torch.device("cpu")
CONFIG = """
seed: 3
simulate: {counts: {train: 12, val: 3, test: 6}, hr_size: 32}
train:
  steps: 6
  batch_size: 2
  crop_size: 8
  log_interval: 2
  validation_interval: 3
  models:
    - {architecture: fsrcnn, learning_rate: 1.0e-3}
    - {architecture: srcnn, name: mine}
"""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, and a run whose data are there, without the simulator."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "tiny.yaml").write_text(CONFIG)
    counts = {"train": 12, "val": 3, "test": 6}
    write_dataset(folder / "run" / "data", {split: blob_pairs(count, seed=count) for split, count in counts.items()})
    patch.setattr(benchmarks.zoo, "simulate_run", lambda *_: None)
    patch.setattr(benchmarks.zoo_results, "ENOUGH_SECONDS", 0.0)
    return folder


def call(place: Path, *more: str) -> int:
    where = ("--out", str(place / "run"), "--results", str(place / "results"), "--device", "cpu", "--workers", "1")
    return main(["--config", str(place / "tiny.yaml"), *where, *more])


def result(place: Path, name: str) -> dict[str, Any]:
    return json.loads((place / "results" / "tiny-cpu" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, list[int]]:
    """The run after four calls, and their exit codes: no time at all; enough for some steps; one model; everything."""
    codes = [call(place, "--minutes", "0")]
    with pytest.MonkeyPatch.context() as patch:
        late = SimpleNamespace(monotonic=lambda: float("inf"), perf_counter=time.perf_counter)
        patch.setattr(sr.trainer, "time", late)
        codes.append(call(place))
    assert (place / "run" / "train" / "fsrcnn" / "checkpoint.safetensors").is_file()
    codes.append(call(place, "--models", "mine"))
    assert not (place / "results").exists()  # one model is not all
    codes.append(call(place))
    return place, codes


def test_slices_say_whether_there_is_more_to_do(finished: tuple[Path, list[int]]) -> None:
    place, codes = finished
    assert codes == [MORE_TO_DO, MORE_TO_DO, FINISHED, FINISHED]
    assert set(read_metrics(place / "run" / "train")["models"]) == {"fsrcnn", "mine"}
    assert [row["step"] for row in result(place, "fsrcnn")["curve"]] == [3, 6]  # over the interruption after step 2


def test_results_are_those_of_evaluation(finished: tuple[Path, list[int]]) -> None:
    place, _ = finished
    metrics = read_metrics(place / "run" / "evaluate")
    names = {row["model"] for row in metrics["rows"]}
    assert names >= {"fsrcnn", "mine", "bicubic", "bilinear", "wiener"}
    assert {path.stem for path in (place / "results" / "tiny-cpu").iterdir()} == {
        name.replace(" ", "-") for name in names
    }
    for row in metrics["rows"]:
        found = result(place, row["model"].replace(" ", "-"))
        assert found["scores"]["psnr_db"] == row["psnr_db"]
        assert found["scores"]["per_class"] == row["per_class"]
        assert found["parameters"] == row["parameters"]
        assert all(np.isfinite(list(value.values())).all() for key, value in row.items() if key.endswith("_db"))
        assert found["images_per_second"]["median"] > 0
        assert found["images_per_second"]["evaluation"] == row["images_per_second"]
        assert found["mixed"] is False
        assert str(place) not in json.dumps(found)
    mine = result(place, "mine")
    assert (mine["size"], mine["training"]["steps"], mine["trained_on"], mine["config"]) == (
        "small",
        6,
        ["cpu"],
        "tiny",
    )
    assert mine["validation"]["psnr_db"] == read_metrics(place / "run" / "train" / "mine")["validation"]["psnr_db"]


def test_a_finished_run_is_left_alone(finished: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = finished
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    monkeypatch.setattr(benchmarks.zoo, "evaluate_run", None)
    assert call(place) == FINISHED
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="--models edsr: the configuration trains fsrcnn, mine"):
        call(place, "--models", "edsr")
    with pytest.raises(InputError, match="fsrcnn: holds a model of other settings"):
        call(place, "--set", "train.steps=7")


def test_a_slice_ends_while_it_simulates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.zoo, "simulate_run", lambda *_: time.sleep(60))
    began = time.monotonic()
    assert call(place, "--minutes", "0.005") == MORE_TO_DO
    assert 0.25 < time.monotonic() - began < 10


@pytest.fixture
def make_results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    import make_results

    return make_results


def test_tables_have_every_model_and_what_is_mixed_in_none(
    finished: tuple[Path, list[int]], make_results: Any, tmp_path: Path
) -> None:
    place, _ = finished
    page, names = tmp_path / "results.md", ("zoo", "origin", "deeplense")
    page.write_text(
        "before\n" + "".join(f"<!-- begin {name} -->old<!-- end {name} -->\n" for name in names) + "after\n"
    )
    for _ in range(2):  # the second time changes nothing
        make_results.main(["tables", str(place / "results"), str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    zoo = {row[0][2:]: float(row[2].partition(" [")[0]) for row in rows if len(row) == 9 and row[0] != "| model"}
    assert set(zoo) >= {"fsrcnn (small)", "mine (small)", "bicubic", "bilinear", "richardson-lucy"}
    assert list(zoo.values()) == sorted(zoo.values(), reverse=True)
    gain = result(place, "fsrcnn")["scores"]["psnr_db"]["mean"] - result(place, "bilinear")["scores"]["psnr_db"]["mean"]
    compared = next(row for row in rows if row[0] == "| fsrcnn (ours: small)")
    assert (compared[3], compared[-1]) == ("+5.67", f"{gain:+.2f} |")

    metrics_path = place / "run" / "train" / "fsrcnn" / "metrics.json"
    kept = metrics_path.read_text()
    metrics_path.write_text(json.dumps({**json.loads(kept), "devices": ["NVIDIA H100"]}))
    (place / "results" / "tiny-cpu" / "mine.json").unlink()
    assert call(place, "--evaluate") == FINISHED
    assert result(place, "fsrcnn")["mixed"] is True
    make_results.main(["tables", str(place / "results"), str(page)])
    assert not re.search(r"^\| fsrcnn \(", page.read_text(), flags=re.MULTILINE)
    assert "Left out, as trained or evaluated on more than one kind of device: fsrcnn." in page.read_text()
    metrics_path.write_text(kept)

    page.write_text("<!-- begin zoo -->")
    with pytest.raises(SystemExit, match="the page needs one <!-- begin zoo -->"):
        make_results.main(["tables", str(place / "results"), str(page)])


def test_the_picture_is_drawn(
    finished: tuple[Path, list[int]], make_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = finished
    monkeypatch.setattr(make_results, "COLUMNS", 5)
    make_results.main(["figure", str(place / "run"), str(tmp_path / "zoo.png")])
    image = imread(tmp_path / "zoo.png")
    assert 700 < image.shape[1] < 900
    assert image[..., :3].std() > 0.05


# -- shipped weights --------------------------------------------------------------------------------------------------


def splits_of(run: Path) -> tuple[Pairs, float]:
    train = read_pairs(run / "data", "train")
    return read_pairs(run / "data", "val"), data_range_of(train.hr, train.hr_mask)


def test_half_precision_is_stored_and_float32_comes_back(finished: tuple[Path, list[int]], tmp_path: Path) -> None:
    place, _ = finished
    run = place / "run"
    val, data_range = splits_of(run)
    scores = ship(run, "mine", tmp_path / "mine", CPU)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    stored, trained = load_model(tmp_path / "mine", CPU), load_model(run / "train" / "mine", CPU)
    for new, old in zip(stored.network.parameters(), trained.network.parameters(), strict=True):
        assert new.dtype == torch.float32
        assert torch.equal(new, old.half().float())
    half, whole = (path / "model.safetensors" for path in (tmp_path / "mine", run / "train" / "mine"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    expected = image_scores(stored.super_resolve(val.lr, val.lr_noise, CPU), val, data_range)["psnr_db"].mean()
    before = image_scores(trained.super_resolve(val.lr, val.lr_noise, CPU), val, data_range)["psnr_db"].mean()
    assert validation_psnr_db(stored.config) == expected == scores["psnr_db"]["mean"]
    assert scores["psnr_change_by_float16_db"] == pytest.approx(expected - before, abs=1e-12)
    assert stored.config.training["stored_as"] == "float16"
    assert "psnr_change_by_float16_db" in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize("powers", [(-30, 15, 15), (-20, 20, 0)], ids=["vanishes", "overflows"])
def test_weights_that_half_precision_spoils_are_refused(
    finished: tuple[Path, list[int]], tmp_path: Path, powers: tuple[int, int, int]
) -> None:
    place, _ = finished
    run = place / "run"
    model = load_model(run / "train" / "mine", CPU)
    with torch.no_grad():  # the same function in float32, for a ReLU passes positive factors on
        layers = [model.network.features[0], model.network.features[2], model.network.upsampling]
        total = 0
        for layer, power in zip(layers, powers, strict=True):
            total += power
            layer.weight *= 2.0**power
            layer.bias *= 2.0**total
    save_model(TrainedModel("spoiled", model.network, model.config), run / "train" / "spoiled", None)
    with pytest.raises(
        InputError, match=r"spoiled: its PSNR \(validation\) changes by (-\d+\.\d+|nan) dB .* at most 0\.01 dB"
    ):
        ship(run, "spoiled", tmp_path / "spoiled", CPU)
    assert not (tmp_path / "spoiled").exists()


def test_what_is_too_large_or_of_other_data_is_refused(
    finished: tuple[Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = finished
    run = place / "run"
    monkeypatch.setattr(benchmarks.ship_weights, "MAXIMUM_BYTES", 10_000)
    with pytest.raises(InputError, match=r"mine: its files have [\d,]+ bytes, at most 10,000 can be shipped"):
        ship(run, "mine", tmp_path / "mine", CPU)
    model = load_model(run / "train" / "mine", CPU)
    assert model.config.data_sha256 == manifest_sha256(run / "data")
    model.config = model.config.model_copy(update={"data_sha256": "other"})
    save_model(model, run / "train" / "stranger", None)
    with pytest.raises(InputError, match="stranger: was trained on other data"):
        ship(run, "stranger", tmp_path / "stranger", CPU)
    assert not list(tmp_path.iterdir())
