"""Flow matching against closed forms: transport to known distributions, the velocity's identities, known posteriors."""

import numpy as np
import pytest
import torch
from torch import Tensor

from simulate.errors import InputError
from sr.models import resolve_settings
from sr.models.flow import Flow, FlowSettings, transport
from sr.normalisation import fit_normalisation
from sr.samples import Batch
from sr.trained_model import TrainedModel, describe_model
from sr.training import initial_network

from .conftest import blob_pairs

CPU = torch.device("cpu")
TINY = FlowSettings(blocks=1, features=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def network(settings: FlowSettings = TINY, scale: int = 2, channels: int = 1, seed: int = 0) -> Flow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Flow(settings, scale, channels).eval()


def batch_of(lr: Tensor, hr: Tensor, mask: Tensor | None = None) -> Batch:
    rows = torch.zeros(len(lr), dtype=torch.long)
    mask = torch.ones_like(hr, dtype=torch.bool) if mask is None else mask
    return Batch(lr, hr, mask, torch.full_like(lr, 0.1), rows, rows)


# -- transport --------------------------------------------------------------------------------------------------------


def gaussian_velocity(x: Tensor, time: Tensor, mean: float, sigma: float) -> Tensor:
    """E[x1 - x0 | x_t] for x0 ~ N(0, 1), x1 ~ N(mean, sigma²), both independent."""
    t = time.view(-1, 1)
    covariance = t * sigma**2 - (1 - t)
    return mean + covariance / ((1 - t) ** 2 + t**2 * sigma**2) * (x - t * mean)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.3, 1.0, 1.5])
def test_eight_steps_reach_a_gaussian(sigma: float) -> None:
    """The map is x0 -> mean + sigma x0; its slope and offset are measured with two points."""
    x = transport(lambda x, time: gaussian_velocity(x, time, 3.0, sigma), torch.tensor([[0.0], [1.0]]).double(), 8)
    mean, slope = x[0].item(), (x[1] - x[0]).item()
    assert mean == pytest.approx(3.0, abs=1e-12)
    assert 0.955 < slope / sigma < 1.001


def test_half_steps_leave_a_quarter_of_the_error_or_less() -> None:
    def error(steps: int) -> float:
        x = transport(lambda x, time: gaussian_velocity(x, time, 0.0, 0.3), torch.ones(1, 1).double(), steps)
        return abs(x.item() - 0.3)

    assert error(16) / error(32) > 3.9


def test_transport_reaches_two_points_by_the_sign_of_the_noise() -> None:
    """x1 = +1 or -1 with equal chances: E[x1 | x_t] = tanh(t x / (1-t)²)."""

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        t = time.view(-1, 1)
        return (torch.tanh(t * x / (1 - t) ** 2) - x) / (1 - t)

    noise = images(500, 1).double()
    noise = noise[noise.abs().flatten() > 0.05]
    torch.testing.assert_close(transport(velocity, noise, 64), noise.sign(), atol=0.02, rtol=0)


def test_transport_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        transport(lambda x, _: x, torch.zeros(1, 1), 0)


# -- the network's velocity -------------------------------------------------------------------------------------------


def test_the_velocity_is_that_of_the_path_if_the_network_answers_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    start, end, time = images(5, 1, 8, 8), images(5, 1, 8, 8, seed=1), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    t = time.view(-1, 1, 1, 1)
    flow = network()
    direction = ((1 - t) * end - t * start) / torch.sqrt((1 - t) ** 2 + t**2)
    monkeypatch.setattr(flow, "_direction", lambda *_: direction)
    velocity = flow.velocity((1 - t) * start + t * end, time, torch.zeros(5, 1, 4, 4))
    torch.testing.assert_close(velocity, end - start)


@pytest.mark.parametrize(("scale", "channels"), [(2, 1), (3, 2)])
def test_forward_is_the_first_step_from_any_noise(scale: int, channels: int) -> None:
    flow, lr = network(scale=scale, channels=channels), images(2, channels, 5, 7)
    noise = images(2, channels, 5 * scale, 7 * scale, seed=1)
    with torch.inference_mode():
        mean = noise + flow.velocity(noise, torch.zeros(2), lr)
        expected = flow.bicubic(lr) + flow.residual_scale(lr, scale) * mean
        torch.testing.assert_close(flow(lr), expected, atol=1e-5, rtol=1e-5)
        later = noise + flow.velocity(noise, torch.full((2,), 0.3), lr)
        assert not torch.allclose(later, mean, atol=1e-3)


def test_residuals_are_measured_in_the_brightness_around() -> None:
    flow = network(FlowSettings(blocks=1, features=8, residual_floor=0.3, residual_contrast=0.2))
    torch.testing.assert_close(flow.residual_scale(torch.zeros(1, 1, 5, 5), 2), torch.full((1, 1, 10, 10), 0.3))
    torch.testing.assert_close(flow.residual_scale(torch.full((1, 1, 5, 5), -2.0), 2), torch.full((1, 1, 10, 10), 0.5))
    point = torch.zeros(1, 1, 7, 7)
    point[..., 3, 3] = 3.0
    size = flow.residual_scale(point)
    assert size[0, 0, 2, 4].item() == pytest.approx((0.09 + 0.04 * 9 / 9) ** 0.5)
    assert size[0, 0, 1, 3].item() == pytest.approx(0.3)


def test_what_is_far_away_does_not_matter() -> None:
    """Tiles of an image can be joined: 1 block sees 1 + 2 + 1 pixels and the scale one more, bicubic only 2."""
    flow, lr, noise = network(), images(1, 1, 20, 20), images(1, 1, 40, 40, seed=1)
    with torch.inference_mode():
        whole = flow.sample(lr, noise, steps=1)  # two evaluations in a row see twice as far
        part = flow.sample(lr[..., :16], noise[..., :32], steps=1)
    torch.testing.assert_close(part[..., :10], whole[..., :10], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(part[..., 30:], whole[..., 30:32])


def test_draws_follow_the_noise() -> None:
    flow, lr, noise = network(), images(2, 1, 6, 6), images(2, 1, 12, 12, seed=1)
    with torch.inference_mode():
        draw = flow.sample(lr, noise)
        assert draw.shape == noise.shape
        assert draw.dtype == torch.float32
        assert torch.equal(flow.sample(lr, noise), draw)
        assert (flow.sample(lr, images(2, 1, 12, 12, seed=2)) - draw).abs().mean() > 1e-3
        torch.testing.assert_close(flow.sample(lr[1:], noise[1:]), draw[1:])


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_known_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the residual is known the velocity (x1 - x) / (1 - t) makes no error; an error of 2 counts 4."""
    flow, lr, hr = network(), images(4, 1, 6, 6), images(4, 1, 12, 12, seed=1)
    residual = (hr - flow.bicubic(lr)) / flow.residual_scale(lr, 2)

    def exact(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        return (residual - x) / (1 - time.view(-1, 1, 1, 1)) + 2

    monkeypatch.setattr(flow, "velocity", exact)
    loss = flow.training_loss(batch_of(lr, hr), generator())
    assert loss.item() == pytest.approx(4, rel=1e-3)
    monkeypatch.setattr(flow, "velocity", lambda x, time, lr: torch.zeros_like(x))
    large = batch_of(lr.repeat(100, 1, 1, 1), hr.repeat(100, 1, 1, 1))
    expected = residual.square().mean().item() + 1  # |x1 - x0|² of independent x1 and x0
    assert flow.training_loss(large, generator()).item() == pytest.approx(expected, rel=0.05)


def test_times_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = network(FlowSettings(blocks=1, features=8, mean_share=0.5))
    times: list[Tensor] = []

    def nothing(x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        times.append(time)
        return torch.zeros_like(x)

    monkeypatch.setattr(flow, "velocity", nothing)
    flow.training_loss(batch_of(torch.zeros(20_000, 1, 2, 2), torch.zeros(20_000, 1, 4, 4)), generator())
    assert (times[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.015)
    moving = times[0][times[0] > 0]
    assert moving.max() <= 1
    assert moving.median().item() == pytest.approx(0.75, abs=0.015)  # 1 - (1 - u)² at u = 1/2


def test_pixels_that_are_not_real_teach_nothing() -> None:
    flow, lr, hr = network(), images(3, 1, 6, 6), images(3, 1, 12, 12, seed=1)
    mask = images(3, 1, 12, 12, seed=2) > 0
    losses = []
    for filling in (float("nan"), 5.0):
        loss = flow.training_loss(batch_of(lr, torch.where(mask, hr, filling), mask), generator())
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in flow.parameters())
    nothing = flow.training_loss(batch_of(lr, hr, torch.zeros_like(mask)), generator())
    assert nothing.item() == 0


def test_the_loss_is_float32_under_autocast_and_follows_the_generator() -> None:
    flow, batch = network(), batch_of(images(3, 1, 6, 6), images(3, 1, 12, 12, seed=1))
    exact = flow.training_loss(batch, generator())
    assert flow.training_loss(batch, generator()).item() == exact.item()
    assert flow.training_loss(batch, generator(1)).item() != exact.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = flow.training_loss(batch, generator())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_training_recovers_the_posterior_of_a_linear_problem() -> None:
    """HR pixels are N(0, 1); an LR pixel y is the mean of its four with noise of sigma 0.25.

    The four, given y, are Gaussian: mean 0.25 / (0.25 + 0.0625) y = 0.8 y, covariance 1 - 0.25 * 0.8 11^T: each has a
    variance of 0.8, their sum 0.8 as well (3.2 if draws forgot what pixels share, 4 if they forgot the LR image).
    """
    noise_sigma, size = 0.25, 8
    draw = generator()

    def scene(count: int) -> tuple[Tensor, Tensor]:
        hr = torch.randn(count, 1, 2 * size, 2 * size, generator=draw)
        noise = noise_sigma * torch.randn(count, 1, size, size, generator=draw)
        return torch.nn.functional.avg_pool2d(hr, 2) + noise, hr

    flow = network(FlowSettings(blocks=1, features=24, residual_floor=1, residual_contrast=1e-6))
    optimiser = torch.optim.Adam(flow.parameters(), lr=4e-3)
    steps = 350
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        loss = flow.training_loss(batch_of(*scene(16)), draw)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    lr = scene(1)[0]
    mean = 0.8 * lr.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.inference_mode():
        assert (flow(lr) - mean).square().mean().sqrt() < 0.08
        draws = flow.sample(lr.expand(200, -1, -1, -1), torch.randn(200, 1, 2 * size, 2 * size, generator=draw))
    inside = (..., slice(2, -2), slice(2, -2))
    assert (draws.mean(0) - mean[0])[inside].square().mean().sqrt() < 0.12  # 0.063 of it is the draws' number
    assert draws.var(0)[inside].mean().item() == pytest.approx(0.8, rel=0.1)
    sums = 4 * torch.nn.functional.avg_pool2d(draws, 2)
    assert sums.var(0).mean().item() == pytest.approx(0.8, rel=0.25)


# -- trained models ---------------------------------------------------------------------------------------------------


def trained_model(architecture: str = "flow") -> TrainedModel:
    pairs = blob_pairs(2)
    settings = TINY if architecture == "flow" else resolve_settings(architecture)
    config = describe_model(architecture, settings, pairs, fit_normalisation(pairs))
    return TrainedModel("one", initial_network(architecture, settings, pairs.scale, 1, 0), config)


def test_a_model_draws_the_same_samples_whatever_the_batch() -> None:
    model, pairs = trained_model(), blob_pairs(3)
    draws = model.sample(pairs.lr, pairs.lr_noise, 3, 7, CPU, steps=2)
    assert draws.shape == (3, 3, 32, 32)
    assert draws.dtype == np.float32
    for batch_size in (1, 2, 4, 7):
        again = model.sample(pairs.lr, pairs.lr_noise, 3, 7, CPU, steps=2, batch_size=batch_size)
        np.testing.assert_allclose(again, draws, atol=1e-5)
    fewer = model.sample(pairs.lr[:2], pairs.lr_noise[:2], 2, 7, CPU, steps=2)
    np.testing.assert_allclose(fewer, draws[:2, :2], atol=1e-5)
    flat = draws.reshape(9, -1)
    same_image = model.sample(pairs.lr[[0, 0]], pairs.lr_noise[[0, 0]], 2, 7, CPU, steps=2).reshape(4, -1)
    for rows in (flat, same_image):
        assert all((rows[one] - rows[other]).std() > 1e-4 for one in range(len(rows)) for other in range(one))
    assert not np.allclose(model.sample(pairs.lr, pairs.lr_noise, 3, 8, CPU, steps=2), draws, atol=1e-3)


def test_samples_are_in_the_unit_of_the_flux() -> None:
    model, pairs = trained_model(), blob_pairs(2)
    draws = model.sample(pairs.lr, pairs.lr_noise, 2, 0, CPU, steps=2)
    rescaled = model.sample(1000 * pairs.lr, 1000 * pairs.lr_noise, 2, 0, CPU, steps=2)
    np.testing.assert_allclose(rescaled, 1000 * draws, rtol=1e-4, atol=1e-2)


def test_models_and_images_without_samples_are_refused() -> None:
    pairs = blob_pairs(3)
    with pytest.raises(InputError, match="model one: fsrcnn gives one answer an image"):
        trained_model("fsrcnn").sample(pairs.lr, pairs.lr_noise, 2, 0, CPU)
    pairs.lr[2, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="sample 2: lr and lr_noise must be finite"):
        trained_model().sample(pairs.lr, pairs.lr_noise, 8, 0, CPU)
    with pytest.raises(ValueError, match=r"expected one shape \(N,1,h,w\)"):
        trained_model().sample(pairs.lr[0], pairs.lr_noise[0], 2, 0, CPU)
