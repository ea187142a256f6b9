"""Predicted errors: the loss against scipy's normal, the image that must not change for it, and what is made of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.stats import norm

from simulate.errors import InputError
from simulate.shards import Pairs
from sr.coverage import coverage_scores
from sr.degradation import Degradation, knows_degradation, usual_kernel
from sr.losses import loss_context
from sr.model_folder import load_model, save_model
from sr.models.d4 import ORDER, act
from sr.normalisation import fit_normalisation
from sr.operators import ForwardOperator, matching_kernels
from sr.plan import ModelSettings, TrainSettings
from sr.predicted_variance import independent_draws, predicts_sigma, sigma_loss
from sr.report_trust import coverage_curves
from sr.samples import Batch, load_samples
from sr.schedule import LoopSettings
from sr.super_resolve import super_resolve_fits
from sr.tiles import super_resolve_image_and_sigma
from sr.trained_model import TrainedModel, describe_model
from sr.trainer import Trainer
from sr.training import train_run
from sr.training_log import read_log
from sr.trust import Trust, UncertaintySettings

from .conftest import blob_pairs, write_dataset
from .test_degradation import lopsided_kernels, noise
from .test_unrolled import TINY, seen_with, tiny_network

CPU = torch.device("cpu")


def batch_of(hr: torch.Tensor, mask: torch.Tensor | None = None) -> Batch:
    rows = torch.arange(len(hr))
    everywhere = torch.ones_like(hr, dtype=torch.bool)
    lr = hr[..., ::2, ::2]
    return Batch(lr, hr, everywhere if mask is None else mask, torch.ones_like(lr), rows, torch.zeros_like(rows))


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_normal_likelihood_of_real_pixels() -> None:
    output, hr = noise(2, 1, 6, 6).float(), noise(2, 1, 6, 6, seed=1).float()
    sigma = 0.5 + noise(2, 1, 6, 6, seed=2).float().abs()
    mask = noise(2, 1, 6, 6, seed=3) > 0
    expected = -norm.logpdf(output.numpy(), hr.numpy(), sigma.numpy())[mask.numpy()].mean() - 0.5 * np.log(2 * np.pi)
    batch = batch_of(torch.where(mask, hr, torch.nan), mask)
    assert float(sigma_loss(output, sigma, batch)) == pytest.approx(expected, rel=1e-5)
    assert float(sigma_loss(output, sigma, batch_of(hr, torch.zeros_like(mask)))) == 0


def test_it_is_least_at_the_root_mean_square_error_and_the_image_learns_nothing_from_it() -> None:
    """Also where what is not real is not finite."""
    hr = torch.full((1, 1, 40, 40), torch.nan)
    hr[..., :20] = 0.3 * noise(1, 1, 40, 20).float() + 0.1
    log_sigma, output = torch.zeros((), requires_grad=True), torch.zeros_like(hr, requires_grad=True)
    batch = batch_of(hr, hr.isfinite())
    optimiser = torch.optim.LBFGS([log_sigma], max_iter=50)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = sigma_loss(output, log_sigma.exp().expand_as(hr), batch)
        value.backward()
        return value

    optimiser.step(loss)
    assert float(log_sigma.detach().exp()) == pytest.approx(float(hr[..., :20].square().mean().sqrt()), rel=1e-4)
    assert output.grad is None


def test_draws_have_the_mean_and_sigma_of_each_pixel_and_neighbours_are_independent() -> None:
    mean, sigma = noise(2, 1, 5, 4).float().numpy(), 0.1 + noise(2, 1, 5, 4, seed=1).float().abs().numpy()
    draws = independent_draws(mean, sigma, 4000, 3)
    assert (draws.shape, draws.dtype) == ((2, 4000, 5, 4), np.float32)
    z = (draws - mean) / sigma
    np.testing.assert_allclose(z.mean(1), 0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(z.std(1), 1, atol=5 / np.sqrt(8000))
    assert abs((z[..., 1:] * z[..., :-1]).mean()) < 0.02
    np.testing.assert_array_equal(draws, independent_draws(mean, sigma, 4000, 3))


# -- the unrolled network's -------------------------------------------------------------------------------------------


def scene(scale: int = 2) -> tuple[torch.Tensor, Degradation]:
    sigma = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(1)) + 0.1
    operator = ForwardOperator(lopsided_kernels(2), scale).to(CPU, torch.float32)
    return 3 * noise(2, 1, 9, 7).float(), Degradation(sigma, operator)


def test_all_else_starts_as_without_and_the_features_do_not_learn_from_it() -> None:
    plain, network = tiny_network(), tiny_network(predict_sigma=True)
    assert (predicts_sigma(plain), predicts_sigma(network)) == (False, True)
    weights, own = plain.state_dict(), network.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    assert {name.split(".")[0] for name in own.keys() - weights.keys()} == {"error", "sigma"}
    lr, degradation = scene()
    image, sigma = network.mean_and_sigma(lr, degradation)
    assert torch.equal(image, plain(lr, degradation))
    assert torch.equal(image, network(lr, degradation))
    assert sigma.shape == image.shape
    sigma_loss(image, sigma, batch_of(torch.zeros_like(image))).backward()
    for name, parameter in network.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert learns == (name.split(".")[0] in ("error", "sigma")), name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sigma_turns_with_the_image_and_is_in_its_unit(scale: int) -> None:
    network = tiny_network(scale, predict_sigma=True).eval()
    with torch.no_grad():
        torch.nn.init.normal_(network.get_parameter("sigma.1.weight"), std=0.1)
    lr, degradation = scene(scale)
    with torch.inference_mode():
        sigma = network.mean_and_sigma(lr, degradation)[1]
        assert sigma.shape == (2, 1, 9 * scale, 7 * scale)
        assert float(sigma.min()) > 0
        assert float(sigma.log().std()) > 0.1
        for element in range(ORDER):
            turned = network.mean_and_sigma(act(element, lr).contiguous(), degradation.turned(element))[1]
            torch.testing.assert_close(turned, act(element, sigma), rtol=1e-4, atol=0)
        brighter = network.mean_and_sigma(10 * lr, Degradation(10 * degradation.noise, degradation.operator))[1]
        torch.testing.assert_close(brighter, 10 * sigma, rtol=1e-4, atol=0)


def test_a_sigma_next_to_nothing_has_a_finite_loss_and_gradient() -> None:
    network = tiny_network(predict_sigma=True)
    with torch.no_grad():
        torch.nn.init.normal_(network.get_parameter("sigma.1.weight"), std=1e3)
    lr, degradation = scene()
    image, sigma = network.mean_and_sigma(lr, degradation)
    assert float((sigma.detach() / lr.abs().max()).min()) < 1e-2
    loss = sigma_loss(image, sigma, batch_of(image.detach() + lr.abs().max()))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(one.grad).all() for one in network.parameters() if one.grad is not None)


def train(pairs: Pairs, steps: int, clip: float | None = 1.0, **settings: bool) -> TrainedModel:
    normalisation = fit_normalisation(pairs)
    network = tiny_network(**settings)
    loop = LoopSettings(
        steps=steps, batch_size=8, crop_size=None, learning_rate=5e-3, ema_decay=0.9, gradient_clip=clip
    )
    context = loss_context({"l1": 1.0}, pairs, normalisation, "hr", CPU, knows_degradation=True)
    Trainer(network, load_samples(pairs, normalisation, "hr", CPU), loop, 0, context=context).run(lambda *_: None)
    config = describe_model("unrolled", network.settings, pairs, normalisation, data_sha256="ab" * 32)
    return TrainedModel("unrolled", network, config, usual_kernel(network, pairs))


def test_the_image_learns_the_same_with_and_without_it() -> None:
    """To the bit where gradients are not clipped, which is done to all of them together."""
    pairs = seen_with(blob_pairs(8), np.full(8, 3.0), np.full(8, 0.05))
    plain, model = (train(pairs, 4, clip=None, predict_sigma=predict) for predict in (False, True))
    weights, own = plain.network.state_dict(), model.network.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    np.testing.assert_array_equal(model.super_resolve_pairs(pairs, CPU), plain.super_resolve_pairs(pairs, CPU))


def test_a_trained_sigma_is_the_error_made_where_that_is_known() -> None:
    """LR images are noise, 3 times as much on one side and of another level in each, and HR images are unrelated to
    them: normal, of 0.7 of that noise. So the error is normal, whatever the image."""
    rng = np.random.default_rng(0)
    blobs = blob_pairs(48)
    level = np.geomspace(0.02, 0.2, 48)[rng.permutation(48), None, None, None] * np.where(np.arange(16) < 8, 1, 3)
    noise_map = np.broadcast_to(level, blobs.lr.shape).astype("f4")
    hr = 0.7 * np.kron(noise_map, np.ones((2, 2))) / 4 * rng.standard_normal(blobs.hr.shape)
    lr = noise_map * rng.standard_normal(blobs.lr.shape)
    pairs = replace(blobs, hr=hr.astype("f4"), lr=lr.astype("f4"), lr_noise=noise_map)
    training, test = pairs.select(np.arange(32)), pairs.select(np.arange(32, 48))
    model = train(training, 60, predict_sigma=True)
    error, sigma = model.super_resolve_pairs(test, CPU) - test.hr, model.predicted_sigma_of_pairs(test, CPU)
    for side in (slice(0, 12), slice(20, 32)):  # the bicubic image carries light over the border
        z = (error / sigma)[..., side]
        assert np.sqrt((z**2).mean()) == pytest.approx(1, abs=0.1)
        assert (np.abs(z) < 1).mean() == pytest.approx(0.683, abs=0.05)


@pytest.fixture(scope="module")
def trained() -> tuple[TrainedModel, Pairs]:
    """A tiny network trained on blobs with noise of 0.01 to 0.3, and 24 scenes that it has not seen."""
    rng = np.random.default_rng(0)
    pairs = seen_with(blob_pairs(56), rng.uniform(2, 5, 56), np.geomspace(0.01, 0.3, 8)[np.arange(56) % 8])
    return train(pairs.select(np.arange(32)), 20, predict_sigma=True), pairs.select(np.arange(32, 56))


def test_sigma_is_in_flux_per_pixel_and_needs_a_network_that_predicts_it(trained: tuple[TrainedModel, Pairs]) -> None:
    model, test = trained
    amplitude = model.config.normalisation.factor * test.lr_noise[:, :, :1, :1]
    lr, sigma = (torch.from_numpy(one / amplitude) for one in (test.lr, test.lr_noise))
    operator = ForwardOperator(matching_kernels(test.hr_band, test.lr_band), 2).to(CPU, torch.float32)
    assert predicts_sigma(model.network)
    with torch.inference_mode():
        expected = model.network.mean_and_sigma(lr, Degradation(sigma, operator))[1].numpy() * amplitude / 4
    np.testing.assert_allclose(model.predicted_sigma_of_pairs(test, CPU), expected, rtol=1e-4)
    plain = replace(model, network=tiny_network())
    with pytest.raises(InputError, match=r"unrolled predicts no error, expected .* the setting predict_sigma"):
        plain.predicted_sigma_of_pairs(test, CPU)


# -- as a model of the pipeline ---------------------------------------------------------------------------------------


def test_the_pipeline_trains_it_and_logs_its_loss(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    common = {"steps": 4, "batch_size": 4, "crop_size": 8, "validation_interval": 4, "log_interval": 2}
    one = ModelSettings(architecture="unrolled", settings={**TINY, "predict_sigma": True})
    train_run(run, TrainSettings(**common, models=(one,)), 0, CPU, resume=True)
    assert all(np.isfinite(row["sigma_loss"]) for row in read_log(run / "train/unrolled"))
    model = load_model(run / "train/unrolled", CPU)
    assert knows_degradation(model.network)
    assert predicts_sigma(model.network)


def test_fits_images_get_a_map_of_it_without_draws(trained: tuple[TrainedModel, Pairs], tmp_path: Path) -> None:
    model, test = trained
    save_model(model, tmp_path / "unrolled", None)
    image = np.tile(np.concatenate(test.lr[:4, 0]), (1, 6)).astype("f4")  # (64, 96)
    rms = np.full_like(image, 0.05) * np.linspace(1, 2, 96, dtype="f4")
    header = fits.Header({"PIXSCALE": test.lr_band.pixel_scale_arcsec, "TELESCOP": test.lr_band.instrument})
    header["BUNIT"] = "electron/s"
    seen = image.copy()
    seen[5, 7] = np.nan
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(seen, header, name="SCI"), fits.ImageHDU(rms, name="RMS")]
    source, target = tmp_path / "in.fits", tmp_path / "out.fits"
    fits.HDUList(hdus).writeto(source)

    def run(draws: int | None = None) -> None:
        super_resolve_fits(source, target, tmp_path / "unrolled", CPU, force=True, overwrite=True, draws=draws)

    run()
    with fits.open(target) as file:
        assert [one.name for one in file] == ["SCI", "SIGMA"]
        primary, sigma = file
        np.testing.assert_array_equal(np.isnan(sigma.data), np.isnan(primary.data))
        assert np.isnan(sigma.data).sum() == 4
        assert sigma.header["BUNIT"] == "electron/s"
        assert "SIGMA: 1 sigma error of each pixel as the network predicts it" in " ".join(sigma.header["HISTORY"])
        seen[5, 7] = seen[5, 6]
        usual = float(np.median(rms[np.isfinite(rms)]))
        expected = model.super_resolve_and_sigma(seen[None, None], rms[None, None], CPU, usual_noise=usual)[1][0, 0]
        real = np.isfinite(sigma.data)
        near = np.zeros_like(real)
        near[:50, :60] = True  # what the filled pixel may reach
        np.testing.assert_allclose(sigma.data[real & ~near], expected[real & ~near], rtol=0.02)
    run(draws=0)
    with fits.open(target) as file:
        assert len(file) == 1
    with pytest.raises(InputError, match="unrolled predicts its error itself, without draws; leave --draws out"):
        run(draws=4)
    tiled, whole = (super_resolve_image_and_sigma(model, image, 0.07, CPU, size, rms)[1] for size in (64, 128))
    np.testing.assert_allclose(tiled, whole, rtol=0.1)


def test_it_is_judged_by_coverage_of_independent_draws(trained: tuple[TrainedModel, Pairs], tmp_path: Path) -> None:
    model, test = trained
    write_dataset(tmp_path, {"test": test})
    trust = Trust(test, None, tmp_path, UncertaintySettings(scenes=20, draws=15, noise_images=8), seed=3)
    others = TrainedModel("plain", tiny_network(), model.config, model.kernel)
    coverage = trust.content([others, model], CPU)["coverage"]
    assert list(coverage) == ["unrolled"]
    scores = coverage["unrolled"]
    assert scores["independent_pixels"]
    assert (scores["scenes"], scores["draws"]) == (20, 15)
    some = test.select(np.arange(20))
    mean = model.super_resolve_pairs(some, CPU)
    draws = independent_draws(mean, model.predicted_sigma_of_pairs(some, CPU), 15, 3)
    expected = coverage_scores(draws, mean, some, np.random.default_rng(0))
    assert isinstance(expected["pixels"], dict)
    for region, curve in expected["pixels"].items():
        found = scores["pixels"][region]
        np.testing.assert_array_equal(found["observed"]["mean"], curve["observed"]["mean"])
        assert found["error_over_sigma"]["mean"] == pytest.approx(curve["error_over_sigma"]["mean"])
    json.dumps(coverage, allow_nan=False)
    assert "unrolled (independent pixels), light" in coverage_curves(coverage)
