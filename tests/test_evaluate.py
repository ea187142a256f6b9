"""Evaluation: the table's numbers against direct computation, controls against closed forms, choices on validation."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from simulate.errors import InputError
from simulate.shards import Band, Pairs, manifest_sha256, read_pairs, write_json
from sr.classical import BLUR_SIGMAS_LR_PIXELS, blur_control, tune, wiener
from sr.evaluate import EvaluateSettings, evaluate_run, finished_models
from sr.evaluation_examples import choose_examples
from sr.metrics import MEDIAN_SCORES, data_range_of, fidelity_scores
from sr.model_folder import save_model
from sr.models import build_network, parameter_count, resolve_settings
from sr.normalisation import Normalisation
from sr.trained_model import TrainedModel, describe_model, interpolation_model

from .conftest import blob_pairs, gaussian_kernel, write_dataset

CPU = torch.device("cpu")


def save_untrained(run: Path, name: str, architecture: str = "fsrcnn") -> TrainedModel:
    """A model folder as training leaves it, with random weights."""
    pairs = read_pairs(run / "data", "test")
    settings = resolve_settings(architecture, "small")
    config = describe_model(
        architecture,
        settings,
        pairs,
        Normalisation(20.0, pairs.scale),
        data_sha256=manifest_sha256(run / "data"),
    )
    model = TrainedModel(name, build_network(architecture, settings, pairs.scale), config)
    save_model(model, run / "train" / name, None)
    write_json(run / "train" / name / "metrics.json", {"fingerprint": name})
    return model


def test_a_model_trained_on_other_data_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", {split: blob_pairs(3, seed=1) for split in ("train", "val", "test")})
    save_untrained(tmp_path, "fsrcnn")
    write_dataset(tmp_path / "data", {split: blob_pairs(3, seed=2) for split in ("train", "val", "test")})
    with pytest.raises(InputError, match="was trained on other data"):
        finished_models(tmp_path, CPU)


def row_of(metrics: dict, name: str) -> dict:
    return next(row for row in metrics["rows"] if row["model"] == name)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("evaluate")
    counts = {"train": 24, "val": 6, "test": 9}
    write_dataset(run / "data", {split: blob_pairs(count, seed=count) for split, count in counts.items()})
    save_untrained(run, "fsrcnn")
    return run, evaluate_run(run, EvaluateSettings(), seed=0, device=CPU, resume=False)


def test_bicubic_row_equals_direct_computation(evaluated: tuple[Path, dict]) -> None:
    run, metrics = evaluated
    test, train = read_pairs(run / "data", "test"), read_pairs(run / "data", "train")
    data_range = np.median(train.hr.max((1, 2, 3)))
    # an independent bicubic: torch's, in surface brightness
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(test.lr.astype("f8")), scale_factor=2, mode="bicubic", align_corners=False
    )
    error = ((upsampled.numpy() / 4 - test.hr) ** 2).mean((1, 2, 3))
    psnr_db = 10 * np.log10(data_range**2 / error)
    row = row_of(metrics, "bicubic")
    assert metrics["data_range"] == pytest.approx(data_range)
    assert row["psnr_db"]["mean"] == pytest.approx(psnr_db.mean(), abs=0.05)  # cubic kernels differ in a constant
    assert row["psnr_db"]["low"] < row["psnr_db"]["mean"] < row["psnr_db"]["high"]
    assert row["psnr_gain_db"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert set(row["per_class"]) == {"axion", "cdm", "none"}
    weighted = np.mean([row["per_class"][name]["mse"]["mean"] for name in row["per_class"]])  # 3 scenes of each
    assert weighted == pytest.approx(row["mse"]["mean"])


def test_network_row_is_counted_and_gains_are_paired(evaluated: tuple[Path, dict]) -> None:
    run, metrics = evaluated
    row = row_of(metrics, "fsrcnn")
    assert row["kind"] == "network"
    assert row["parameters"] == parameter_count(finished_models(run, CPU)[0].network)
    expected = row["psnr_db"]["mean"] - row_of(metrics, "bicubic")["psnr_db"]["mean"]
    assert row["psnr_gain_db"]["mean"] == pytest.approx(expected)
    assert metrics["best_model"] == "fsrcnn"
    json.dumps(metrics, allow_nan=False)


def test_every_row_says_how_true_the_images_are(evaluated: tuple[Path, dict]) -> None:
    run, metrics = evaluated
    test = read_pairs(run / "data", "test")
    bicubic = interpolation_model("bicubic", test).super_resolve(test.lr, test.lr_noise, CPU)
    scores, curves = fidelity_scores(bicubic, test, None)
    row = row_of(metrics, "bicubic")
    for name, values in scores.items():
        expected = np.median(values) if name in MEDIAN_SCORES else values.mean()
        assert row[name]["mean"] == pytest.approx(expected)
        assert all(name in one for one in metrics["rows"])
        assert set(row["per_class"]["cdm"]) >= {name}
    spectra = metrics["spectra"]
    assert spectra["lr_nyquist_cycles_per_arcsec"] == pytest.approx(5)
    assert spectra["frequency_lr_nyquist"] == curves.frequency.tolist()
    correlation = spectra["methods"]["bicubic"]["cross_correlation"]
    np.testing.assert_allclose(correlation["mean"], curves.correlation.mean(0))
    assert set(spectra["methods"]) == {one["model"] for one in metrics["rows"]}
    (truth,) = metrics["references"]
    assert truth["arc_flux_error"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "no configuration of a simulation" in metrics["macro_model_missing"]


def test_only_finished_models_count(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    save_untrained(run, "done")
    save_untrained(run, "killed")
    (run / "train" / "killed" / "metrics.json").unlink()
    assert [model.name for model in finished_models(run, CPU)] == ["done"]


def test_without_models_the_baselines_remain(blob_run: Callable[..., Path]) -> None:
    metrics = evaluate_run(blob_run(), EvaluateSettings(), seed=0, device=CPU, resume=False)
    assert metrics["best_model"] is None
    baselines = ["bilinear", "bicubic", "blur control", "wiener", "richardson-lucy"]
    assert [row["model"] for row in metrics["rows"]] == baselines


def test_resume_skips_finished_work_and_a_new_model_is_noticed(
    blob_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr.evaluate.summarise", lambda scores, generator: {})
    run = blob_run()
    metrics = evaluate_run(run, EvaluateSettings(), seed=0, device=CPU, resume=False)
    before = (run / "evaluate" / "metrics.json").stat().st_mtime_ns
    again = evaluate_run(run, EvaluateSettings(), seed=0, device=CPU, resume=True)
    assert again == metrics
    assert (run / "evaluate" / "metrics.json").stat().st_mtime_ns == before
    save_untrained(run, "another")
    assert row_of(evaluate_run(run, EvaluateSettings(), seed=0, device=CPU, resume=True), "another")


def test_blur_sigma_is_chosen_on_validation_alone(
    blob_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of the test split must not change the choice; that of the validation split must."""
    monkeypatch.setattr("sr.evaluate.summarise", lambda scores, generator: {})  # intervals take most of the time
    run = blob_run()
    train, val, test = (read_pairs(run / "data", split) for split in ("train", "val", "test"))

    def chosen(validation: Pairs, tested: Pairs) -> float:
        write_dataset(run / "data", {"train": train, "val": validation, "test": tested})
        metrics = evaluate_run(run, EvaluateSettings(), seed=0, device=CPU, resume=False)
        return row_of(metrics, "blur control")["chosen"]["sigma_lr_pixels"]

    plain = chosen(val, test)
    assert chosen(val, add_noise(test)) == plain
    assert chosen(add_noise(val), test) > plain
    brute_force = [((blur_control(val, sigma) - val.hr) ** 2).mean((1, 2, 3)) for sigma in BLUR_SIGMAS_LR_PIXELS]
    assert plain == BLUR_SIGMAS_LR_PIXELS[np.argmin([np.log(error).mean() for error in brute_force])]


def add_noise(pairs: Pairs) -> Pairs:
    noise = np.random.default_rng(1).normal(0, 1, pairs.lr.shape)
    return dataclasses.replace(pairs, lr=(pairs.lr + noise).astype("f4"))


def test_blur_control_without_blur_is_bicubic() -> None:
    pairs = blob_pairs(3)
    bicubic = interpolation_model("bicubic", pairs).super_resolve(pairs.lr, pairs.lr_noise, CPU)
    np.testing.assert_allclose(blur_control(pairs, 0.0), bicubic, rtol=1e-6)


def gaussian_through_instruments(scale: int, lr_size: int, psf_per_sample: bool) -> Pairs:
    """A Gaussian source seen by two Gaussian PSFs: closed form, pixel response included by exact integration."""
    from scipy.special import erf

    pairs = blob_pairs(2, scale=scale, lr_size=lr_size)
    source, psf_hr, psf_lr = 1.8, 0.5, 0.9  # sigmas in LR pixels
    centre = np.array([[0.47, 0.55], [0.52, 0.44]]) * lr_size

    def image(sigma: float, size: int) -> np.ndarray:
        edges = np.linspace(0, lr_size, size + 1)
        share = [np.diff(erf((edges - one) / (np.sqrt(2) * sigma))) / 2 for one in centre.ravel()]
        return np.stack([np.outer(share[0], share[1]), np.outer(share[2], share[3])])[:, None].astype("f4") * 100

    def band(sigma: float, pixel: float) -> Band:
        kernel = gaussian_kernel(2.3548 * sigma * 4, size=61)  # sampled at a quarter of an LR pixel
        return Band("instrument", pixel, np.stack([kernel] * 2) if psf_per_sample else kernel, 0.25)

    return dataclasses.replace(
        pairs,
        hr=image(np.hypot(source, psf_hr), scale * lr_size),
        lr=image(np.hypot(source, psf_lr), lr_size),
        hr_band=band(psf_hr, 1 / scale),
        lr_band=band(psf_lr, 1.0),
    )


@pytest.mark.parametrize(("scale", "lr_size", "psf_per_sample"), [(2, 48, False), (3, 47, False), (4, 48, True)])
def test_wiener_without_noise_gives_the_closed_form(scale: int, lr_size: int, psf_per_sample: bool) -> None:
    pairs = gaussian_through_instruments(scale, lr_size, psf_per_sample)
    sharp = wiener(pairs, 1e-6)
    bicubic = interpolation_model("bicubic", pairs).super_resolve(pairs.lr, pairs.lr_noise, CPU)
    peak = pairs.hr.max()
    assert np.abs(sharp - pairs.hr).max() < 1e-5 * peak
    assert np.abs(bicubic - pairs.hr).max() > 0.05 * peak


def test_wiener_keeps_the_flux_whatever_the_noise() -> None:
    pairs = gaussian_through_instruments(2, 48, False)
    np.testing.assert_allclose(wiener(pairs, 0.3).sum((1, 2, 3)), pairs.lr.sum((1, 2, 3)), rtol=1e-4)


def test_tuned_wiener_beats_bicubic_on_noisy_blobs() -> None:
    validation, test = blob_pairs(12, seed=3), blob_pairs(12, seed=4)
    data_range = data_range_of(validation.hr, validation.hr_mask)
    noise_to_signal = tune(wiener, (1e-3, 1e-2, 0.1, 1.0), validation, data_range)
    bicubic = interpolation_model("bicubic", test).super_resolve(test.lr, test.lr_noise, CPU)
    assert ((wiener(test, noise_to_signal) - test.hr) ** 2).mean() < ((bicubic - test.hr) ** 2).mean()


def test_examples_are_the_median_scene_of_each_class(evaluated: tuple[Path, dict]) -> None:
    run, _ = evaluated
    label, gain = np.array([0, 1, 0, 1, 0]), np.array([3.0, 9.0, 1.0, 7.0, 2.0])
    assert choose_examples(label, gain, 0.5) == [4, 3]
    assert choose_examples(label, gain, 1.0) == [0, 1]
    test = read_pairs(run / "data", "test")
    with h5py.File(run / "evaluate" / "examples.h5") as file:
        assert file["quantile"][()].tolist() == [0.5] * 3 + [0.1] * 3 + [0.9] * 3
        assert file["label"][()].tolist() == [0, 1, 2] * 3
        rows = [test.index.tolist().index(one) for one in file["index"][()]]
        np.testing.assert_array_equal(file["hr"][()], test.hr[rows])
        assert set(file["sr"]) == {"bilinear", "bicubic", "blur control", "wiener", "richardson-lucy", "fsrcnn"}
        assert file["sr/fsrcnn"].shape == file["hr"].shape
