"""The command line as a user meets it: a whole tiny run, then every kind of wrong input."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import pipeline
from simulate.shards import read_manifest, read_pairs

TINY = """
seed: 2
simulate:
  counts: {train: 12, val: 3, test: 6}
  hr_size: 48
  scene: {supersampling: 1}
pairs: {scale: 2, hr_size: 48, sources: [{kind: hubble_deep_field}]}
train:
  steps: 6
  batch_size: 4
  crop_size: 12
  validation_interval: 3
  models:
    - {architecture: fsrcnn}
    - {architecture: srresnet, settings: {features: 8, blocks: 1}}
    - {architecture: rcan, settings: {features: 8, groups: 1, blocks: 1, reduction: 4}}
    - {architecture: srgan, settings: {features: 8, blocks: 1}}
transfer: {models: [rcan], folds: 2, frozen_steps: 2, finetune_steps: 2, batch_size: 4, crop_size: 12}
evaluate: {ceiling: {scenes: 3, fit: {draws: 256}, modes: 30, field_draws: 40}}
classify: {seeds: 1, epochs: 1}
"""


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    with pytest.raises(SystemExit) as stop:
        pipeline.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all stages, made by the installed command's own module in a process of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "-m", "pipeline", "run", "--config", "tiny.yaml", "--out", "run", "--device", "cpu"]
    environment = {"PYTHONPATH": str(Path(pipeline.__file__).parent), "PATH": "", "HOME": str(folder)}
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip().splitlines()[-1] == f"report: {Path('run') / 'report.html'}"
    return folder / "run"


def test_run_leaves_what_each_stage_promises(tiny_run: Path) -> None:
    for stage in ("data", "pairs", "train", "transfer", "evaluate", "classify"):
        metrics = json.loads((tiny_run / stage / "metrics.json").read_text())
        assert metrics["seconds"] >= 0
    for model in ("fsrcnn", "srresnet", "rcan", "srgan"):
        names = {path.name for path in (tiny_run / "train" / model).iterdir()}
        assert {"model.safetensors", "config.json", "README.md", "metrics.json", "log.jsonl"} <= names
    evaluated = json.loads((tiny_run / "evaluate" / "metrics.json").read_text())
    rows = {row["model"] for row in evaluated["rows"]}
    assert {"bilinear", "bicubic", "fsrcnn", "srresnet", "rcan", "srgan"} <= rows
    assert evaluated["macro_model_missing"] is None
    oracle, bound, _ = (row["psnr_db"]["mean"] for row in evaluated["ceiling"]["bounds"])
    best = max(row["psnr_db"]["mean"] for row in evaluated["rows"])
    assert oracle > best + 10  # what six steps of training cannot do, and what the lens model can
    assert abs(oracle - bound) < 10
    truth, bare = evaluated["references"]  # the truth is nearer to itself than the same lens without substructure
    assert (truth["substructure_error"]["mean"], truth["substructure_correlation"]["mean"]) == (0, pytest.approx(1))
    assert (bare["substructure_error"]["mean"], bare["substructure_correlation"]["mean"]) == (pytest.approx(1), 0)
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert "axion" in page
    assert "<script src" not in page
    assert "sources" in (tiny_run / "config.yaml").read_text()


def test_second_run_does_nothing_again(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*.safetensors")}
    assert call(["run", "--out", str(tiny_run), "--device", "cpu"], monkeypatch) == 0
    assert stamps
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*.safetensors")} == stamps


def test_stages_refuse_what_another_configuration_left(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (tiny_run / "config.yaml").read_text()
    (tiny_run / "train" / "fsrcnn" / "config.json").rename(tiny_run / "hidden.json")
    assert call(["transfer", "--set", "transfer.models=[fsrcnn]", "--out", str(tiny_run)], monkeypatch) == 2
    (tiny_run / "hidden.json").rename(tiny_run / "train" / "fsrcnn" / "config.json")
    capsys.readouterr()
    for command in (["simulate", "--seed", "3"], ["train", "--set", "train.steps=7"]):
        assert call([*command, "--out", str(tiny_run)], monkeypatch) == 2
        assert "--fresh" in capsys.readouterr().err
    assert (tiny_run / "config.yaml").read_text() == kept


def test_super_resolve_a_fits_image(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = read_pairs(tiny_run / "data", "test").lr[0, 0]
    header = fits.Header({"OBJECT": "test", "BUNIT": "nJy"})
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = [10, 12], [150.0, 2.0]
    wcs.wcs.cdelt, wcs.wcs.ctype = [-0.1 / 3600, 0.1 / 3600], ["RA---TAN", "DEC--TAN"]
    header.update(wcs.to_header())
    image = np.pad(lr, ((0, 5), (0, 0)), mode="edge").astype(">f4")
    image[3, 4] = np.nan
    fits.writeto(tmp_path / "in.fits", image, header)
    arguments = ["super-resolve", str(tmp_path / "in.fits"), str(tmp_path / "out.fits")]
    assert call([*arguments, "--model", str(tiny_run / "train" / "rcan")], monkeypatch) == 0
    with fits.open(tmp_path / "out.fits") as hdus:
        result, made = hdus[0].data, hdus[0].header
    assert result.shape == (2 * image.shape[0], 2 * image.shape[1])
    assert made["OBJECT"] == "test"
    assert "rcan" in str(made["HISTORY"])
    before, after = wcs.wcs_pix2world([[6, 5]], 0), WCS(made).wcs_pix2world([[12.5, 10.5]], 0)
    np.testing.assert_allclose(before, after, atol=1e-9)
    assert call([*arguments, "--model", str(tiny_run / "train" / "rcan")], monkeypatch) == 2  # OUT.fits exists
    again = [*arguments, "--model", str(tiny_run / "train" / "rcan"), "--overwrite"]
    assert call([*again, "--draws", "4"], monkeypatch) == 2  # RCAN has no posterior
    assert call([*again, "--draws", "0"], monkeypatch) == 0


def test_verify_finds_damage(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["verify", str(tiny_run)], monkeypatch) == 0
    assert "12 train, 3 val, 6 test" in capsys.readouterr().out
    entry = read_manifest(tiny_run / "data")["splits"]["val"][0]
    shard = tiny_run / "data" / entry["file"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    try:
        assert call(["verify", str(tiny_run)], monkeypatch) == 2
        assert "SHA-256" in capsys.readouterr().err
        assert call(["evaluate", "--out", str(tiny_run), "--fresh"], monkeypatch) == 2
    finally:
        shard.write_bytes(whole)
    assert call(["verify", str(tmp_path)], monkeypatch) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--config", "missing.yaml"], "missing.yaml: cannot be read"),
        (["simulate"], "no config.yaml here yet"),
        (["simulate", "--config", "quickstart", "--set", "simulate.hr_sise=4"], "did you mean 'hr_size'"),
        (["simulate", "--config", "quickstart", "--set", "simulate.hr_size=big"], "expected a valid integer"),
        (["train", "--config", "quickstart"], "run `pipeline simulate`"),
        (["train", "--config", "quickstart", "--device", "abacus"], "--device abacus"),
        (["run", "--config", "quickstart", "--set", "train.models=[{architecture: rcam}]"], "rcan"),
        (["evaluate", "--config", "quickstart"], "run `pipeline simulate`"),
        (["classify-check", "--config", "quickstart"], "run `pipeline simulate`"),
        (["super-resolve", "in.fits", "out.fits", "--model", "nowhere"], "in.fits"),
        (["verify", "nowhere"], "no manifest.json"),
        (["run", "--config", "quickstart", "--set", "pairs.scale=4"], "pairs.scale is 4, simulate.scale 2"),
        (["run", "--config", "quickstart", "--set", "transfer.models=[edsr]"], "does not train"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_help_is_quick_and_lists_every_command() -> None:
    code = "import sys, pipeline; print(sorted({'torch', 'lenstronomy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    started = time.perf_counter()
    answer = subprocess.run([sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 3  # one second on an idle machine; tests may share theirs
    for command in ("simulate", "pairs", "train", "transfer", "evaluate", "classify-check", "super-resolve", "report"):
        assert command in answer.stdout


def test_doctor_and_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor"], monkeypatch) == 0
    assert "pipeline, simulate and sr are ours" in capsys.readouterr().out
    assert call(["models"], monkeypatch) == 0
    assert "rcan" in capsys.readouterr().out
