"""Unsupervised super-resolution by a lens: ray-tracer against lenstronomy, fit, and that no HR image is used."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from torch import Tensor

from simulate.profiles.macro import epl_deflection
from simulate.shards import read_pairs
from sr.checkpoint import CHECKPOINT_NAME
from sr.degradation import Degradation
from sr.model_folder import WEIGHTS_NAME
from sr.models.d4 import ORDER, act
from sr.models.lens_encoder import LensEncoder, LensEncoderSettings, brightness, excess_spread, turn
from sr.models.lens_renderer import PARAMETERS, SERIES_TERMS, LensRenderer, lens_priors
from sr.models.unrolled import DataTerm, UnrolledSettings
from sr.operators import ForwardOperator
from sr.oracle.parameters import prior_number
from sr.plan import ModelSettings, TrainSettings, plan_models
from sr.samples import Batch
from sr.stages import read_metrics
from sr.training import initial_network, train_run

from .conftest import blob_pairs, gaussian_kernel, write_dataset

CPU = torch.device("cpu")
SIZE = 20
LENS = {"theta_e": 4.5, "slope": 2.1, "e1": 0.15, "e2": -0.1, "gamma1": 0.04, "gamma2": -0.03}
LENS |= {"center_x": 0.3, "center_y": -0.2}
SOURCE = {"source_radius": 1.2, "source_index": 1.3, "source_e1": -0.1, "source_e2": 0.2}
SOURCE |= {"source_x": 0.5, "source_y": 0.4}


def numbers(values: dict[str, float], size: int = SIZE) -> Tensor:
    """u (1,P) of a lens."""
    priors = lens_priors(size, size)
    return torch.tensor([[prior_number(priors[name], values[name]) for name in PARAMETERS]])


def lenstronomy_image(size: int = SIZE, scale: int = 2, per_pixel: int = 10, fwhm: float = 1.8) -> np.ndarray:
    """Surface brightness in HR pixels, with its own deflection, light, and scipy's convolution."""
    step = 1 / (scale * per_pixel)
    axis = (np.arange(size * scale * per_pixel) + 0.5) * step - size / 2
    x, y = (one.ravel() for one in np.meshgrid(axis, axis))
    epl = {"theta_E": LENS["theta_e"], "gamma": LENS["slope"], **{key: LENS[key] for key in ("e1", "e2")}}
    epl |= {key: LENS[key] for key in ("center_x", "center_y")}
    shear = {"gamma1": LENS["gamma1"], "gamma2": LENS["gamma2"], "ra_0": 0, "dec_0": 0}
    beta = LensModel(["EPL", "SHEAR"]).ray_shooting(x, y, [epl, shear])
    sersic = {"amp": 1.0, "R_sersic": SOURCE["source_radius"], "n_sersic": SOURCE["source_index"]}
    sersic |= {"e1": SOURCE["source_e1"], "e2": SOURCE["source_e2"]}
    sersic |= {"center_x": SOURCE["source_x"], "center_y": SOURCE["source_y"]}
    light = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(*beta, [sersic]).reshape(len(axis), -1)
    blurred = gaussian_filter(light, fwhm * per_pixel / 2.3548200450309493, mode="constant", truncate=6)
    return blurred.reshape(size * scale, per_pixel, size * scale, per_pixel).mean((1, 3))


def degradation(sigma: Tensor, scale: int = 2) -> Degradation:
    return Degradation(sigma, ForwardOperator(gaussian_kernel(2.5, 9)[None], scale).float())


def network(seed: int = 0, **settings: float) -> LensEncoder:
    made = initial_network("lens_encoder", LensEncoderSettings(features=8, hidden=16, **settings), 2, 1, seed)
    assert isinstance(made, LensEncoder)
    return made


def noisy_lens(sigma: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor, Degradation]:
    """HR truth (1,1,2s,2s), its LR image with noise, and how that came about."""
    hr = torch.from_numpy(lenstronomy_image()).float()[None, None]
    told = degradation(torch.full((1, 1, SIZE, SIZE), sigma))
    noise = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return hr, told.forward(hr) + sigma * noise, told


# -- the ray-tracer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("e1", "e2", "slope"), [(0.25, -0.3, 2.2), (0.0, 0.0, 2.0), (-0.05, 0.02, 1.8)])
def test_deflection_is_lenstronomys(e1: float, e2: float, slope: float) -> None:
    x, y = (torch.randn(2, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8).unbind()
    arguments = {"theta_E": 9.0, "gamma": slope, "e1": e1, "e2": e2, "center_x": 0.3, "center_y": -0.4}
    expected = LensModel(["EPL"]).alpha(x.numpy(), y.numpy(), [arguments])
    numbers_of = (torch.tensor(one, dtype=torch.float64) for one in arguments.values())
    found = epl_deflection(x, y, *numbers_of, terms=SERIES_TERMS)
    np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=0, atol=3e-4)


def test_image_is_lenstronomys() -> None:
    expected = lenstronomy_image()
    errors = []
    for supersampling in (1, 2, 4):
        found = LensRenderer(SIZE, SIZE, 2, supersampling, 1.8)(numbers(LENS | SOURCE))[0, 0].numpy()
        errors.append(np.abs(found - expected).max() / expected.max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_frames_need_not_be_square_and_rows_are_y() -> None:
    """A frame that is wider than high shows the same lens, with its priors: those of the shorter side."""
    square, wide = LensRenderer(SIZE, SIZE, 2, 2, 1.8), LensRenderer(SIZE, SIZE + 6, 2, 2, 1.8)
    u = numbers(LENS | SOURCE)
    inside = (..., slice(6, -6), slice(6, -6))  # the wider frame sees light come in over the edges of the square
    torch.testing.assert_close(wide(u)[..., 6:-6][inside], square(u)[inside], rtol=1e-4, atol=1e-4)
    assert (lenstronomy_image().T - square(u)[0, 0].numpy()).max() > 0.1  # no symmetric scene


def test_differences_are_the_derivatives() -> None:
    """Of all parameters, against autodiff through the same image in float32."""
    renderer, u = LensRenderer(SIZE, SIZE, 2, 1, 1.8), numbers(LENS | SOURCE)
    with torch.inference_mode():
        found = renderer.derivatives(u)[0]
    expected = torch.autograd.functional.jacobian(lambda one: renderer(one)[0, 0], u, vectorize=False)[:, :, 0]
    for number, name in enumerate(PARAMETERS):
        size = expected[..., number].norm()
        assert size > 0.01, name
        assert (found[number] - expected[..., number]).norm() < 0.02 * size, name


@pytest.mark.parametrize("element", range(ORDER))
def test_a_turned_lens_is_a_turned_image(element: int) -> None:
    renderer, u = LensRenderer(SIZE, SIZE, 2, 1, 1.8), numbers(LENS | SOURCE)
    torch.testing.assert_close(renderer(turn(element, u)), act(element, renderer(u)), rtol=0, atol=1e-4)


# -- the fit and the data step ----------------------------------------------------------------------------------------


def test_refinement_finds_the_lens_from_the_lr_image_alone() -> None:
    """From an answer of the encoder that is off by up to 0.4 standard deviations of the priors in all numbers."""
    hr, lr, told = noisy_lens()
    one, truth = network(refinements=12), numbers(LENS | SOURCE)
    data = DataTerm(lr, told, UnrolledSettings())
    off = 0.4 * (2 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) - 1)

    def chi_squared(u: Tensor) -> float:
        return float((data.residual(one.render(u, data, 2)) ** 2 / data.variance).mean())

    with torch.inference_mode():
        found = one.refine(truth + off, data)
        assert chi_squared(truth + off) > 5
        assert chi_squared(found) == pytest.approx(1, abs=0.15)  # 400 pixels: 0.07
        error = (one.render(found, data, 2) - hr).square().mean()
        bicubic = torch.nn.functional.interpolate(lr, scale_factor=2, mode="bicubic", align_corners=False)
        assert error < 0.05 * (bicubic - hr).square().mean()


def test_answer_is_the_refined_lens_and_the_data_step() -> None:
    """With the encoder's answer put in place of what it would say."""
    _, lr, told = noisy_lens()
    truth = numbers(LENS | SOURCE)

    def answer(**settings: int) -> Tensor:
        one = network(**settings)
        one.start = lambda data: truth + 0.1  # type: ignore[method-assign]
        with torch.inference_mode():
            return one(lr, told)

    def chi_squared(image: Tensor) -> float:
        return float(((told.forward(image) - lr) / 0.02).square().mean())

    assert chi_squared(answer(refinements=8)) < 1.2 < chi_squared(answer(refinements=0, iterations=0))
    assert chi_squared(answer(refinements=0)) < 0.5 * chi_squared(answer(refinements=0, iterations=0))


def test_answer_turns_with_the_image() -> None:
    """Whatever the encoder has learnt: it sees the image from all sides, and the best start is taken."""
    _, lr, told = noisy_lens()
    one = network(refinements=2)
    with torch.inference_mode():
        answer, turned = one(lr, told), one(act(5, lr).contiguous(), told.turned(5))
    torch.testing.assert_close(turned, act(5, answer), rtol=0, atol=0.01 * float(answer.max()))


def test_brightness_is_least_squares() -> None:
    hr, lr, told = noisy_lens()
    data = DataTerm(lr, told, UnrolledSettings())
    factor, _ = brightness(3 * hr, data)
    weight = data.variance.sqrt().numpy().ravel()
    seen, target = told.forward(3 * hr).numpy().ravel() / weight, lr.numpy().ravel() / weight
    assert float(factor) == pytest.approx(np.linalg.lstsq(seen[:, None], target, rcond=None)[0][0], rel=1e-4)
    assert float(brightness(-hr, data)[0]) == 0


@pytest.mark.parametrize("spread", [2.0, 5.0])
def test_spread_is_that_of_what_the_image_lacks(spread: float) -> None:
    """HR images that differ from the given one by white noise of so many units: the mean square over 40 of them.

    To 10 %, for at the frame's edge less light comes in than is reckoned with.
    """
    away = torch.arange(64) - 31.5
    image = (4 * torch.exp(-(away**2 + away[:, None] ** 2) / 200)).expand(40, 1, 64, 64)
    sigma = torch.full((40, 1, 32, 32), 0.2)
    told, generator = degradation(sigma), torch.Generator().manual_seed(0)
    unit = DataTerm(told.forward(image), told, UnrolledSettings()).hr_unit
    lr = told.forward(image + spread * unit * torch.randn(image.shape, generator=generator))
    lr = lr + sigma * torch.randn(lr.shape, generator=generator)
    found = excess_spread(image, DataTerm(lr, told, UnrolledSettings()))
    assert float(found.square().mean().sqrt()) == pytest.approx(spread, rel=0.1)
    assert excess_spread(image, DataTerm(told.forward(image), told, UnrolledSettings())).max() == 0


# -- training ---------------------------------------------------------------------------------------------------------


def lens_batch(hr_value: float | None = None) -> tuple[Batch, Degradation]:
    """Two noisy images of one lens, the HR images as they are or of one value."""
    made = [noisy_lens(sigma, seed) for seed, sigma in enumerate((0.02, 0.1))]
    hr, lr = torch.cat([one[0] for one in made]), torch.cat([one[1] for one in made])
    told = degradation(torch.cat([one[2].noise for one in made]))
    if hr_value is not None:
        hr = torch.full_like(hr, hr_value)
    mask = torch.full_like(hr, hr_value is None, dtype=torch.bool)
    rows = torch.arange(2)
    return Batch(lr, hr, mask, told.noise, rows, torch.zeros_like(rows)), told


def test_loss_and_gradient_do_not_know_the_hr_images() -> None:
    found = []
    for value in (None, float("nan")):
        one, (batch, told) = network(), lens_batch(value)
        loss = one.training_loss(batch, torch.Generator(), told)
        loss.backward()
        gradients = [parameter.grad for parameter in one.parameters() if parameter.grad is not None]
        assert len(gradients) == len(list(one.parameters()))
        found.append([loss.detach(), *gradients])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    assert found[0][0].isfinite()
    assert all(gradient.abs().max() > 0 for gradient in found[0][1:])


def test_gradient_is_that_of_differences() -> None:
    one, (batch, told) = network(), lens_batch()

    def loss() -> Tensor:
        return one.training_loss(batch, torch.Generator(), told)

    loss().backward()
    bias = one.upsampling.bias
    assert bias.grad is not None
    size = float(bias.grad.norm())
    with torch.no_grad():
        for number, name in enumerate(PARAMETERS):
            values = []
            for change in (5e-4, -1e-3):
                bias[number] += change
                values.append(float(loss()))
            bias[number] += 5e-4
            assert (values[0] - values[1]) / 1e-3 == pytest.approx(float(bias.grad[number]), abs=0.02 * size), name


def test_the_encoder_learns_a_lens_from_its_lr_image() -> None:
    one, (batch, told) = network(), lens_batch()
    optimiser = torch.optim.Adam(one.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = one.training_loss(batch, torch.Generator(), told)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    # one lens alone may leave it in another minimum (chi^2/N of 3 here), from where refinement goes on
    assert losses[-1] < losses[0] - math.log(10)


def test_the_right_lens_has_the_least_loss() -> None:
    """ln of chi^2/N: little more than 0 at the truth, the priors' share included; more with any other number."""
    one, (batch, told) = network(), lens_batch()
    truth = numbers(LENS | SOURCE).expand(2, -1)

    def loss(u: Tensor) -> float:
        one.encode = lambda contrast: u  # type: ignore[method-assign]
        return float(one.training_loss(batch, torch.Generator(), told))

    best = loss(truth)
    assert best == pytest.approx(0.05, abs=0.1)
    for number, name in enumerate(PARAMETERS):
        moved = truth.clone()
        moved[:, number] += 0.5
        assert loss(moved) > best + 0.01, name


def train(run: Path) -> Path:
    """One short training of the run's data; its folder."""
    one = ModelSettings(architecture="lens_encoder", settings={"features": 4, "hidden": 8, "refinements": 1})
    settings = TrainSettings(models=(one,), steps=4, batch_size=4, crop_size=8, validation_interval=2, log_interval=2)
    train_run(run, settings, 3, CPU, resume=False)
    return run / "train" / "lens_encoder"


def test_a_training_uses_no_hr_image(blob_run: Callable[..., Path], tmp_path: Path) -> None:
    """Other HR images, in training and validation, and the weights are the same bits: those of the last step."""
    run, other = blob_run(train=8, val=2, test=1), tmp_path / "other"
    splits = {split: read_pairs(run / "data", split) for split in ("train", "val", "test")}
    changed = {name: replace(one, hr=7 - 2 * one.hr, hr_noisy=0 * one.hr_noisy) for name, one in splits.items()}
    write_dataset(other / "data", changed)
    first, second = train(run), train(other)
    weights, others = load_file(first / WEIGHTS_NAME), load_file(second / WEIGHTS_NAME)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    metrics = read_metrics(first)
    assert (metrics["best_step"], metrics["curve"]) == (4, [])
    assert metrics["validation"] != read_metrics(second)["validation"]
    assert not (first / CHECKPOINT_NAME).exists()
    assert "moving average at the last step" in (first / "README.md").read_text() + (first / "config.json").read_text()


def test_it_is_trained_on_whole_images_whatever_the_crops_are() -> None:
    pairs = blob_pairs(4)
    models = (ModelSettings(architecture="lens_encoder"), ModelSettings(architecture="srcnn"))
    plans = plan_models(TrainSettings(models=models, crop_size=8), pairs, pairs, "ab", 1)
    assert [plan.loop.crop_size for plan in plans] == [None, 8]
