import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sr.model_folder
from simulate.errors import InputError
from simulate.shards import Pairs
from sr.domain import SeenRange, seen_range
from sr.model_folder import load_model, save_model
from sr.models import ARCHITECTURES, parameter_count
from sr.normalisation import Normalisation, fit_normalisation
from sr.trained_model import TrainedModel, describe_model, interpolation_model
from sr.training import initial_network

from .conftest import blob_pairs, gaussian_kernel

CPU = torch.device("cpu")
TINY: dict[str, dict[str, Any]] = {
    "fsrcnn": {"features": 8, "shrunk_features": 4, "mapping_layers": 1},
    "srresnet": {"blocks": 1, "features": 8},
    "rcan": {"groups": 1, "blocks": 1, "features": 8, "reduction": 4},
    "srgan": {"blocks": 1, "features": 8},
    "flow": {"blocks": 1, "features": 8},
}


def tiny_model(architecture: str = "srresnet", pairs: Pairs | None = None, seed: int = 0) -> TrainedModel:
    pairs = pairs or blob_pairs(2)
    settings = ARCHITECTURES[architecture].settings.model_validate(TINY[architecture])
    network = initial_network(architecture, settings, pairs.scale, 1, seed)
    config = describe_model(architecture, settings, pairs, fit_normalisation(pairs), data_sha256="ab" * 32)
    return TrainedModel(architecture, network, config)


def test_the_normalisation_is_inverted_and_conserves_surface_brightness() -> None:
    normalisation = Normalisation(factor=3.0, scale=4)
    amplitude = normalisation.amplitude(torch.tensor([0.5, 2.0]).view(2, 1, 1, 1).expand(2, 1, 5, 5))
    torch.testing.assert_close(amplitude.flatten(), torch.tensor([1.5, 6.0]))
    hr = torch.rand(2, 1, 20, 20)
    network_hr = normalisation.to_network_hr(hr, amplitude)
    torch.testing.assert_close(normalisation.from_network_hr(network_hr, amplitude), hr)
    flat = torch.ones(2, 1, 5, 5)  # flux per LR pixel; 16 HR pixels share it
    torch.testing.assert_close(
        normalisation.to_network_lr(flat, amplitude)[..., :1, :1],
        normalisation.to_network_hr(torch.full((2, 1, 1, 1), 1 / 16), amplitude),
    )


def test_the_fitted_factor_makes_the_mean_square_one() -> None:
    pairs = blob_pairs(5)
    normalised = pairs.lr / (fit_normalisation(pairs).factor * 0.05)
    assert np.mean(normalised.astype(float) ** 2) == pytest.approx(1, rel=1e-6)


def test_a_noise_map_of_zeros_is_refused_by_its_sample() -> None:
    pairs = blob_pairs(3, first_index=40)
    pairs.lr_noise[1] = 0
    with pytest.raises(InputError, match="sample 41"):
        fit_normalisation(pairs)


@pytest.mark.parametrize("architecture", TINY)
def test_a_saved_model_answers_with_the_same_bits(architecture: str, tmp_path: Path) -> None:
    pairs = blob_pairs(3)
    model = tiny_model(architecture, pairs)
    save_model(model, tmp_path / "one", None)
    loaded = load_model(tmp_path / "one", CPU)
    assert loaded.name == "one"
    assert loaded.config == model.config
    expected = model.super_resolve(pairs.lr, pairs.lr_noise, CPU)
    assert expected.shape == pairs.hr.shape
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(loaded.super_resolve(pairs.lr, pairs.lr_noise, CPU), expected)


def test_flux_in_another_unit_comes_back_in_that_unit() -> None:
    pairs = blob_pairs(3)
    model = tiny_model("rcan", pairs)
    answer = model.super_resolve(pairs.lr, pairs.lr_noise, CPU)
    rescaled = model.super_resolve(1000 * pairs.lr, 1000 * pairs.lr_noise, CPU)
    np.testing.assert_allclose(rescaled, 1000 * answer, rtol=1e-4, atol=1e-2)


def test_the_answer_does_not_depend_on_the_batch() -> None:
    pairs = blob_pairs(5)
    model = tiny_model("srresnet", pairs)
    model.network.train()  # a network left in training mode would use its batch's statistics
    whole = model.super_resolve(pairs.lr, pairs.lr_noise, CPU)
    np.testing.assert_allclose(model.super_resolve(pairs.lr, pairs.lr_noise, CPU, 2), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_interpolation_shares_a_flat_flux_evenly(name: str) -> None:
    model = interpolation_model(name, blob_pairs(1, scale=4))
    answer = model.super_resolve(np.full((1, 1, 8, 8), 32.0), np.full((1, 1, 8, 8), 0.1), CPU)
    np.testing.assert_allclose(answer, 2.0, rtol=1e-5)
    assert parameter_count(model.network) == 0


def test_interpolation_is_only_for_baselines() -> None:
    with pytest.raises(ValueError, match="not an interpolation"):
        interpolation_model("rcan", blob_pairs(1))


@pytest.mark.parametrize(("where", "value"), [("lr", np.nan), ("lr", np.inf), ("lr_noise", np.nan)])
def test_an_image_that_is_not_finite_is_refused_by_its_number(where: str, value: float) -> None:
    pairs = blob_pairs(4)
    getattr(pairs, where)[3, 0, 2, 2] = value
    with pytest.raises(ValueError, match="sample 3"):
        tiny_model().super_resolve(pairs.lr, pairs.lr_noise, CPU, batch_size=2)


def test_images_of_the_wrong_shape_are_refused() -> None:
    pairs = blob_pairs(2)
    with pytest.raises(ValueError, match=r"expected one shape \(N,1,h,w\)"):
        tiny_model().super_resolve(pairs.lr[0], pairs.lr_noise[0], CPU)


def test_the_card_tells_what_was_measured(tmp_path: Path) -> None:
    model = tiny_model()
    scores = {"validation": {"psnr_db": 41.5}, "test": {"psnr_db": {"mean": 40.25, "low": 39.0, "high": 41.0}}}
    save_model(model, tmp_path, scores)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in ("41.5", "40.25 [39, 41]", "ab" * 32, "nJy", f"{parameter_count(model.network):,}", "1609.04802"):
        assert text in card


def test_the_card_tells_what_the_model_saw_and_where_its_data_came_from(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path / "stored", None)
    stored = (tmp_path / "stored" / "README.md").read_text(encoding="utf-8")
    assert f"- trained towards: `hr` of the data whose manifest has SHA-256 `{'ab' * 32}`" in stored
    assert 'What it saw: blurred, 0.1" pixels.\n' in stored
    for text in ("by more than 5%", "background of more than 5 sigma", "unless it is told to `--force`"):
        assert text in stored
    seen = SeenRange(peak_signal_to_noise=(12.34, 98.76), lr_fwhm_arcsec=0.1604)
    changes = {"training": {"data": "on-the-fly"}, "target": "hr_noisy", "training_range": seen}
    model.config = model.config.model_copy(update=changes)
    save_model(model, tmp_path / "stream", None)
    stream = (tmp_path / "stream" / "README.md").read_text(encoding="utf-8")
    assert (
        "- trained towards: `hr_noisy` of lenses simulated on the fly; normalised and validated on the data" in stream
    )
    for text in ("12.3 to 98.8 sigma", 'LR PSF of 0.16" FWHM'):
        assert text in stream
    save_model(interpolation_model("bicubic", blob_pairs(1)), tmp_path / "bicubic", None)
    assert "- not trained\n" in (tmp_path / "bicubic" / "README.md").read_text(encoding="utf-8")


def test_scores_are_kept_with_the_model(tmp_path: Path) -> None:
    scores = {"validation": {"psnr_db": 41.5, "ssim": {"mean": 0.9, "low": 0.8, "high": 0.95}}}
    model = tiny_model()
    save_model(model, tmp_path, scores)
    assert load_model(tmp_path, CPU).config == model.config.model_copy(update={"scores": scores})
    save_model(load_model(tmp_path, CPU), tmp_path, None)  # weights that were changed have no score
    assert load_model(tmp_path, CPU).config.scores == {}


def test_models_of_earlier_versions_are_read(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path, {"validation": {"psnr_db": 41.5}})
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["scores"], content["training_range"]
    path.write_text(json.dumps(content))
    assert load_model(tmp_path, CPU).config == model.config


def test_the_range_a_model_saw_is_kept(tmp_path: Path) -> None:
    pairs = blob_pairs(101)
    peak = np.sort((pairs.lr / 0.05).max(axis=(1, 2, 3)))
    seen = seen_range(pairs)
    assert seen.peak_signal_to_noise == pytest.approx((peak[1], peak[99]), rel=1e-5)
    assert seen.lr_fwhm_arcsec == pytest.approx(2 * 0.1, rel=0.05)  # a Gaussian of 2 pixels
    assert seen.describe_fwhm() == f'{seen.lr_fwhm_arcsec:.3g}"'
    psfs = np.stack([gaussian_kernel(2 + 0.01 * row, 31) for row in range(len(pairs))])
    several = dataclasses.replace(pairs.lr_band, psf=psfs)
    seen = seen_range(dataclasses.replace(pairs, lr_band=several))
    assert seen.lr_fwhm_range_arcsec == pytest.approx((0.2, 0.3), rel=0.05)
    assert seen.lr_fwhm_arcsec == pytest.approx(0.25, rel=0.05)
    model = tiny_model()
    model.config = model.config.model_copy(update={"training_range": seen})
    save_model(model, tmp_path, None)
    assert load_model(tmp_path, CPU).config.training_range == seen


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a model folder \(config.json is missing\)"):
        load_model(tmp_path / "nothing", CPU)


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_weights, r"model\.safetensors: damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: missing"),
        (
            lambda folder: _edit_config(folder, settings={"blocks": 1, "features": 9}),
            r"model\.safetensors: does not fit",
        ),
        (lambda folder: _edit_config(folder, settings={"block": 1}), r"config\.json.*unknown key 'block'.*'blocks'"),
        (lambda folder: _edit_config(folder, architecture="srresent"), "did you mean 'srresnet'"),
        (lambda folder: _edit_config(folder, scala=2), r"config\.json.*unknown key 'scala'.*'scale'"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: cannot be read"),
    ],
)
def test_a_damaged_model_is_an_input_error(damage: Any, message: str, tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path, None)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path, CPU)


def test_a_killed_save_never_mixes_an_old_model_with_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny_model(seed=1), tmp_path, None)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sr.model_folder, "write_card", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(tiny_model(seed=2), tmp_path, None)
    with pytest.raises(InputError, match="not a model folder"):
        load_model(tmp_path, CPU)
