"""The unrolled network: its data term against linear algebra, its symmetry, and what knowing the PSF is worth."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from safetensors.torch import load_file
from torch import Tensor

from simulate.errors import InputError
from simulate.shards import Pairs, read_pairs, write_shard
from sr.checkpoint import CHECKPOINT_NAME
from sr.degradation import Degradation, usual_kernel
from sr.losses import loss_context
from sr.model_folder import WEIGHTS_NAME, load_model, save_model
from sr.models import build_network, parameter_count, resolve_settings
from sr.models.d4 import ORDER, GroupDownsampling, act
from sr.models.interpolation import Interpolation
from sr.models.unrolled import DataTerm, Unrolled, UnrolledSettings
from sr.normalisation import fit_normalisation
from sr.operators import ForwardOperator, forward_operator, matching_kernels
from sr.plan import ModelSettings, TrainSettings, plan_models
from sr.samples import load_samples
from sr.schedule import LoopSettings
from sr.super_resolve import super_resolve_fits
from sr.tiles import super_resolve_image
from sr.trained_model import TrainedModel, describe_model
from sr.trainer import Trainer
from sr.training import initial_network, train_run

from .conftest import blob_pairs, gaussian_kernel
from .test_degradation import lopsided_kernels, noise, with_psfs

CPU = torch.device("cpu")
TINY = {"steps": 2, "blocks": 1, "fields": 1}


def tiny_network(scale: int = 2, seed: int = 0, **changes: Any) -> Unrolled:
    settings = UnrolledSettings(**{**TINY, **changes})
    network = initial_network("unrolled", settings, scale, 1, seed)
    assert isinstance(network, Unrolled)
    return network


def matrix(degradation: Degradation, shape: tuple[int, int]) -> Tensor:
    """A of one image, (h w, H W)."""
    pixels = shape[0] * shape[1] * degradation.operator.scale**2
    scale = degradation.operator.scale
    units = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, scale * shape[0], scale * shape[1])
    one = ForwardOperator(degradation.operator.kernels[:1], scale, 0)
    return Degradation(degradation.noise, one).forward(units).flatten(1).T


# -- the data term ----------------------------------------------------------------------------------------------------


def data_term(noise_sigma: float = 0.3, **settings: float) -> tuple[DataTerm, Tensor, Tensor]:
    """Of an image of 7 x 6 pixels with noise that varies; its variance and A as a matrix."""
    lr = (3 + noise(1, 1, 7, 6)).float()
    sigma = noise_sigma * (1 + noise(1, 1, 7, 6, seed=1).abs().float())
    degradation = Degradation(sigma, ForwardOperator(lopsided_kernels(1, 5), 2))
    return DataTerm(lr, degradation, UnrolledSettings(**settings)), lr.double(), matrix(degradation, (7, 6))


def test_the_solution_is_the_posteriors_mean() -> None:
    """N(x, C) and LR = A HR + N(0, V): by numpy's solution of the normal equations in 168 unknowns."""
    data, lr, a = data_term()
    x = (1 + noise(1, 1, 14, 12, seed=2)).float()
    spread = torch.tensor(1.7)
    prior = ((spread * data.hr_unit) ** 2).double().flatten().numpy()
    precision = data.variance.double().flatten().numpy() ** -1
    a_matrix, residual = a.numpy(), lr.flatten().numpy() - a.numpy() @ x.double().flatten().numpy()
    information = a_matrix.T @ (precision[:, None] * a_matrix) + np.diag(1 / prior)
    expected = x.double().flatten().numpy() + np.linalg.solve(information, a_matrix.T @ (precision * residual))
    found = data.solve(x, spread, 60).double().flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected - x.flatten().numpy()).max())


def test_without_noise_it_converges_to_the_least_squares_solution() -> None:
    """Of least norm from x on, in units of the prior: numpy's pseudo-inverse. There the LR image is met exactly."""
    data, lr, a = data_term(noise_sigma=1e-4, unit_of_light=1.0)
    data.variance = torch.full_like(data.variance, 1e-8)  # no light from outside either
    x = torch.zeros(1, 1, 14, 12)
    unit = data.hr_unit.double().flatten().numpy()
    expected = unit * (np.linalg.pinv(a.numpy() * unit) @ lr.flatten().numpy())
    found = data.solve(x, torch.tensor(1.0), 150).double()
    np.testing.assert_allclose(a.numpy() @ found.flatten().numpy(), lr.flatten().numpy(), atol=2e-4)
    assert np.linalg.norm(found.flatten().numpy() - expected) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_a_step_improves_the_posterior_and_does_not_go_beyond_its_peak(spread: float) -> None:
    data, _, _ = data_term(noise_sigma=0.01)
    start, width = torch.ones(1, 1, 14, 12), torch.tensor(spread)
    way = data.step(start, width) - start

    def objective(share: float) -> float:
        """-2 ln of the posterior on the way."""
        chi2 = (data.residual(start + share * way).double() ** 2 / data.variance).sum()
        return float(chi2 + ((share * way / (width * data.hr_unit)).double() ** 2).sum())

    values = [objective(share) for share in (0.0, 0.5, 0.99, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9 * values[0]


def test_an_image_that_fits_is_left_as_it_is() -> None:
    data, _, _ = data_term()
    x = (1 + noise(1, 1, 14, 12, seed=2)).float()
    data.lr = data.degradation.forward(x)
    torch.testing.assert_close(data.solve(x, torch.tensor(1.0), 5), x, rtol=0, atol=1e-5)
    assert data.solve(x, torch.tensor(1.0), 5).isfinite().all()


def test_light_from_outside_counts_as_noise_at_the_edge_and_nowhere_else() -> None:
    kernel = gaussian_kernel(4, 15)
    lr, sigma = torch.full((1, 1, 16, 16), 2.0), torch.full((1, 1, 16, 16), 0.1)
    lr[..., :8] = 0
    data = DataTerm(lr, Degradation(sigma, ForwardOperator(kernel[None], 2)), UnrolledSettings())
    extra = (data.variance - sigma**2).sqrt()
    assert float(extra[..., 4:-4, 4:-4].max()) < 1e-3
    torch.testing.assert_close(extra[..., :8], torch.zeros_like(extra[..., :8]), rtol=0, atol=1e-6)
    kept = kernel.sum(0)
    share = sum(kept[: 7 - pixel].sum() for pixel in (0, 1)) / 2  # of the light of the outermost LR pixel's HR pixels
    assert float(extra[0, 0, 8, -1]) == pytest.approx(2 * share, rel=1e-4)


# -- the network ------------------------------------------------------------------------------------------------------


def test_sizes_are_a_tenth_of_rcans() -> None:
    def count(name: str, size: str) -> int:
        return parameter_count(build_network(name, resolve_settings(name, size), 2))

    for own, rcans in (("small", "small"), ("full", "compact")):
        assert count("unrolled", own) <= 0.1 * count("rcan", rcans)


@pytest.mark.parametrize(("scale", "scales"), [(2, ()), (3, ()), (4, ()), (2, (2, 4))])
def test_it_turns_with_image_noise_and_psf_and_not_with_the_image_alone(scale: int, scales: tuple[int, ...]) -> None:
    network = tiny_network(scale, scales=scales).eval()
    with torch.no_grad():
        for layer in network.upsampling:
            torch.nn.init.normal_(layer[1].weight, std=0.1)  # as drawn, it corrects next to nothing
    sigma = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(1)) + 0.1
    degradation = Degradation(sigma, ForwardOperator(lopsided_kernels(2), scale).to(CPU, torch.float32))
    lr = 3 * noise(2, 1, 9, 7).float()
    with torch.inference_mode():
        answer = network(lr, degradation)
        assert float((answer - Interpolation("bicubic", scale)(lr)).abs().max()) > 0.1
        for element in range(ORDER):
            turned = network(act(element, lr).contiguous(), degradation.turned(element))
            torch.testing.assert_close(turned, act(element, answer), rtol=0, atol=1e-5 * float(answer.abs().max()))
        unturned = Degradation(act(1, sigma), degradation.operator)
        assert float((network(act(1, lr).contiguous(), unturned) - act(1, answer)).abs().max()) > 1e-2


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downsampling_commutes_with_the_group(scale: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = GroupDownsampling(2, 3, scale)
        torch.nn.init.normal_(layer.bias)
    x = noise(1, 2, 4 * scale, 5 * scale).float()
    fields = layer(x)
    assert fields.shape == (1, 24, 4, 5)
    for element in range(1, ORDER):
        turned = layer(act(element, x)).unflatten(1, (3, ORDER))
        moved = act(element, fields).unflatten(1, (3, ORDER))
        # the group moves the channels about, too: the same set of 8 images a field, in another order
        for field in range(3):
            distance = (turned[0, field][:, None] - moved[0, field][None]).abs().amax((2, 3))
            assert distance.amin(1).max() < 1e-5
            assert len(set(distance.argmin(1).tolist())) == ORDER


def test_the_data_term_is_in_single_precision_whatever_the_network() -> None:
    """In bfloat16, A would be off by a fraction of 0.004 of the light, many times the noise."""
    data, _, _ = data_term()
    x, spread = data.lr.repeat_interleave(2, -1).repeat_interleave(2, -2), torch.tensor(1.0)
    expected = data.solve(x, spread, 5)
    with torch.autocast("cpu", torch.bfloat16):
        again, _, _ = data_term()
        assert torch.equal(again.solve(x, spread, 5), expected)
        assert torch.equal(again.step(x, spread), data.step(x, spread))


# -- what is trained --------------------------------------------------------------------------------------------------


def seen_with(pairs: Pairs, fwhm_hr_pixels: np.ndarray, sigma: np.ndarray) -> Pairs:
    """`pairs` seen again with LR PSFs and noise of their own, (N,) each: LR images by the operator."""
    psfs = np.stack([gaussian_kernel(np.hypot(2, width), 31) for width in fwhm_hr_pixels])
    pairs = with_psfs(pairs, psfs)
    lr = forward_operator(pairs)(torch.from_numpy(pairs.hr).double()).numpy()
    noise_map = np.broadcast_to(sigma[:, None, None, None], lr.shape)
    lr += np.random.default_rng(3).normal(0, noise_map)
    return replace(pairs, lr=lr.astype("f4"), lr_noise=noise_map.astype("f4"))


@pytest.fixture(scope="module")
def trained() -> tuple[TrainedModel, Pairs]:
    """A tiny network trained on blobs, PSFs of 2 to 5 HR pixels and noise of 0.01 to 0.3; pairs it has not seen."""
    rng = np.random.default_rng(0)
    pairs = seen_with(blob_pairs(40), rng.uniform(2, 5, 40), np.geomspace(0.01, 0.3, 8)[np.arange(40) % 8])
    training, test = pairs.select(np.arange(32)), pairs.select(np.arange(32, 40))
    settings, normalisation = UnrolledSettings(**TINY), fit_normalisation(training)
    network = initial_network("unrolled", settings, 2, 1, 0)
    loop = LoopSettings(steps=60, batch_size=8, crop_size=None, learning_rate=5e-3, ema_decay=0.9)
    context = loss_context({"l1": 1.0}, training, normalisation, "hr", CPU, knows_degradation=True)
    Trainer(network, load_samples(training, normalisation, "hr", CPU), loop, 0, context=context).run(lambda *_: None)
    config = describe_model("unrolled", settings, training, normalisation, data_sha256="ab" * 32)
    return TrainedModel("unrolled", network, config, usual_kernel(network, training)), test


def error(model: TrainedModel, pairs: Pairs, told: Pairs) -> float:
    """Root mean square, if the network is told PSFs and noise of `told`, in units that follow the true noise."""
    kernels, sigma = matching_kernels(told.hr_band, told.lr_band), float(pairs.lr_noise[0, 0, 0, 0])
    answer = model.super_resolve(pairs.lr, told.lr_noise, CPU, kernels=kernels, usual_noise=sigma)
    return float(np.sqrt(np.mean((answer - pairs.hr) ** 2)))


def test_the_right_psf_gives_the_better_answer(trained: tuple[TrainedModel, Pairs]) -> None:
    model, test = trained
    every = np.ones(len(test))
    for width in (2.5, 4.5):
        right, sharper, broader = (
            seen_with(test, (width + change) * every, 0.02 * every) for change in (0.0, -1.0, 1.0)
        )
        least = error(model, right, told=right)
        assert least < 0.8 * error(model, right, told=sharper)
        assert least < 0.8 * error(model, right, told=broader)


def test_the_right_noise_gives_the_better_answer(trained: tuple[TrainedModel, Pairs]) -> None:
    model, test = trained
    every = np.ones(len(test))
    quiet, loud = (seen_with(test, 3 * every, sigma * every) for sigma in (0.015, 0.2))
    assert error(model, quiet, told=quiet) < error(model, quiet, told=loud)
    assert error(model, loud, told=loud) < error(model, loud, told=quiet)


# -- as a model of the pipeline ---------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_to_the_same_bits_and_the_folder_keeps_the_kernel(
    blob_run: Callable[..., Path], tmp_path: Path
) -> None:
    """With a PSF of its own for each pair; what is saved answers as what was trained, PSFs given or not."""
    run = blob_run()
    for seed, split in enumerate(("train", "val")):
        pairs = read_pairs(run / "data", split)
        widths = np.random.default_rng(seed).uniform(2, 4, len(pairs))
        write_shard(run / "data" / split / "shard-00000.h5", seen_with(pairs, widths, np.full(len(pairs), 0.05)), {})
    settings = TrainSettings(
        steps=4,
        batch_size=4,
        crop_size=8,
        validation_interval=2,
        checkpoint_interval=2,
        models=(ModelSettings(architecture="unrolled", settings=TINY),),
    )
    train_run(run, settings, 0, CPU, resume=True)
    weights = load_file(run / "train/unrolled" / WEIGHTS_NAME)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    again = tmp_path / "again"
    shutil.copytree(run / "data", again / "data")
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer._step
        patch.setattr(Trainer, "_step", lambda self, number: stop() if number == 4 else step(self, number))
        with pytest.raises(KeyboardInterrupt):
            train_run(again, settings, 0, CPU, resume=True)
    assert (again / "train/unrolled" / CHECKPOINT_NAME).is_file()
    train_run(again, settings, 0, CPU, resume=True)
    resumed = load_file(again / "train/unrolled" / WEIGHTS_NAME)
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)

    train, val = read_pairs(run / "data", "train"), read_pairs(run / "data", "val")
    model = load_model(run / "train/unrolled", CPU)
    usual = matching_kernels(train.hr_band, train.lr_band).mean(0)
    assert model.kernel is not None
    np.testing.assert_array_equal(model.kernel.kernel, usual)
    without = model.super_resolve(val.lr, val.lr_noise, CPU)
    np.testing.assert_array_equal(without, model.super_resolve(val.lr, val.lr_noise, CPU, kernels=usual[None]))
    assert np.abs(without - model.super_resolve_pairs(val, CPU)).max() > 1e-3


def test_fits_images_are_seen_with_the_stored_kernel_and_their_own_noise_map(
    trained: tuple[TrainedModel, Pairs], tmp_path: Path
) -> None:
    model, test = trained
    save_model(model, tmp_path / "unrolled", None)
    sigma = (test.lr_noise[0, 0] * np.linspace(1, 2, 16)).astype("f4")
    header = fits.Header({"PIXSCALE": test.lr_band.pixel_scale_arcsec, "TELESCOP": test.lr_band.instrument})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(test.lr[0, 0], header, name="SCI"), fits.ImageHDU(sigma, name="RMS")]
    fits.HDUList(hdus).writeto(tmp_path / "in.fits")
    super_resolve_fits(tmp_path / "in.fits", tmp_path / "out.fits", tmp_path / "unrolled", CPU, force=True)
    assert model.kernel is not None
    found = fits.getdata(tmp_path / "out.fits")
    expected = model.super_resolve(test.lr[:1], sigma[None, None], CPU, kernels=model.kernel.kernel[None])[0, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
    flat = model.super_resolve(test.lr[:1], np.full_like(test.lr[:1], np.median(sigma)), CPU)[0, 0]
    assert np.abs(flat - expected).max() > 1e-3 * expected.max()


def test_tiles_give_what_one_piece_gives(trained: tuple[TrainedModel, Pairs]) -> None:
    """They share the whole image's amplitude, and each knows that light may come in at its edges."""
    model, test = trained
    image = np.tile(np.concatenate(test.lr[:4, 0]), (1, 6))  # (64, 96)
    sigma = np.full_like(image, 0.05) * np.linspace(1, 2, 96, dtype="f4")
    tiled, whole = (super_resolve_image(model, image, 0.07, CPU, size, noise=sigma) for size in (64, 128))
    assert np.abs(tiled - whole).max() < 0.02 * whole.max()
    alone = model.super_resolve(image[None, None], sigma[None, None], CPU, usual_noise=0.07)[0, 0]
    np.testing.assert_array_equal(whole, alone)


def test_lenses_on_the_fly_need_a_psf_that_all_share(blob_run: Callable[..., Path]) -> None:
    """The stored kernels are those of the stored pairs, not of lenses that are simulated meanwhile."""
    run = blob_run()
    train, val = read_pairs(run / "data", "train"), read_pairs(run / "data", "val")
    settings = TrainSettings(
        data="on-the-fly", crop_size=8, models=(ModelSettings(architecture="unrolled", settings=TINY),)
    )
    assert [plan.name for plan in plan_models(settings, train, val, "", 0)] == ["unrolled"]
    own = seen_with(train, np.full(len(train), 3.0), np.full(len(train), 0.05))
    with pytest.raises(InputError, match=r"train\.models\.0: unrolled needs data: stored where each pair has a PSF"):
        plan_models(settings, own, val, "", 0)
    others = settings.model_copy(update={"models": (ModelSettings(architecture="rcan"),)})
    assert [plan.name for plan in plan_models(others, own, val, "", 0)] == ["rcan"]
