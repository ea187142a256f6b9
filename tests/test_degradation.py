"""Networks are told the degradation: turned with the crops, kept with the model, and given by every caller."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simulate.errors import InputError
from simulate.shards import Band, Pairs
from sr.degradation import Degradation, UsualKernel, degradation_of_batch, knows_degradation, usual_kernel
from sr.losses import LossContext, loss_context
from sr.model_folder import WEIGHTS_NAME, load_model, save_model
from sr.models import build_network, resolve_settings
from sr.models.d4 import ORDER, act
from sr.normalisation import Normalisation
from sr.operators import ForwardOperator, forward_operator, matching_kernels
from sr.samples import Batch, draw_batch, load_samples, transform
from sr.schedule import LoopSettings
from sr.self_ensemble import mean_over_symmetries
from sr.trained_model import TrainedModel, describe_model
from sr.trainer import Trainer

from .conftest import blob_pairs, gaussian_kernel

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lopsided_kernels(count: int, size: int = 7) -> np.ndarray:
    """Kernels without any symmetry."""
    kernels = np.random.default_rng(1).uniform(0, 1, (count, size, size)) ** 3
    return kernels / kernels.sum((1, 2), keepdims=True)


def with_psfs(pairs: Pairs, psfs: np.ndarray) -> Pairs:
    """`pairs` with LR PSFs of their own."""
    band = pairs.lr_band
    return replace(pairs, lr_band=Band(band.instrument, band.pixel_scale_arcsec, psfs, 0.05))


# -- the operator in the networks' domain -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "scale"), [(1, 2), (3, 2), (3, 3), (1, 4)])
def test_forward_and_adjoint_are_transposed_and_keep_surface_brightness(count: int, scale: int) -> None:
    degradation = Degradation(torch.ones(3, 1, 9, 8), ForwardOperator(lopsided_kernels(count), scale))
    x, y = noise(3, 2, 9 * scale, 8 * scale), noise(3, 2, 9, 8, seed=1)
    one, other = (degradation.forward(x) * y).sum(), (x * degradation.adjoint(y)).sum()
    assert abs(one - other) < 1e-12 * x.norm() * y.norm()
    flat = degradation.forward(torch.full((3, 1, 9 * scale, 8 * scale), 5.0, dtype=torch.float64))
    margin = -(-3 // scale)
    torch.testing.assert_close(flat[..., margin:-margin, margin:-margin], torch.full_like(flat, 5.0)[
        ..., margin:-margin, margin:-margin])  # fmt: skip


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_crops_see_the_operator_turned_as_they_are(count: int, scale: int) -> None:
    """A' (T x) = T (A x), also for PSFs that are not symmetric, each crop with its own symmetry and PSF."""
    operator = ForwardOperator(lopsided_kernels(count), scale)
    symmetry, rows = torch.arange(8), torch.tensor([3, 1, 7, 0, 2, 5, 4, 6])
    hr, sigma = noise(8, 1, 10 * scale, 10 * scale), torch.rand(8, 1, 10, 10)
    batch = Batch(hr, hr, hr > 0, sigma, rows, symmetry)
    degradation = degradation_of_batch(batch, operator)
    assert degradation.noise is sigma
    expected = transform(operator(hr, rows) / scale**2, symmetry)
    torch.testing.assert_close(degradation.forward(transform(hr, symmetry)), expected, rtol=0, atol=1e-14)
    unturned = Degradation(sigma, operator.select(rows)).forward(transform(hr, symmetry))
    assert ((unturned - expected).abs().amax((1, 2, 3)) > 1e-2)[1:].all()
    lr = noise(8, 1, 10, 10, seed=2)
    torch.testing.assert_close(
        degradation.adjoint(transform(lr, symmetry)),
        transform(operator.adjoint(lr, rows) / scale**2, symmetry),
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("element", range(ORDER))
def test_a_batch_turned_as_a_whole_has_its_operator_and_noise_turned(element: int) -> None:
    """As the self-ensemble does, with images that are not square."""
    degradation = Degradation(torch.rand(2, 1, 6, 9), ForwardOperator(lopsided_kernels(2), 2))
    hr = noise(2, 1, 12, 18)
    turned = degradation.turned(element)
    expected = act(element, degradation.forward(hr))
    torch.testing.assert_close(turned.forward(act(element, hr)), expected, rtol=0, atol=1e-14)
    assert torch.equal(turned.noise, act(element, degradation.noise))


def test_a_crop_has_the_kernel_and_noise_of_its_sample() -> None:
    """Through `draw_batch`: of noise-free data, the crop's LR image is A of its HR crop, away from the edge."""
    pairs = with_psfs(
        blob_pairs(4, lr_size=24), np.stack([np.roll(gaussian_kernel(4, 15), 1, one) for one in (0, 1)] * 2)
    )
    lr = forward_operator(pairs)(torch.from_numpy(pairs.hr).double()).numpy().astype("f4")
    pairs = replace(pairs, lr=lr, lr_noise=np.arange(1, 5, dtype="f4")[:, None, None, None] * np.ones_like(lr))
    samples = load_samples(pairs, Normalisation(2.0, 2), "hr", CPU)
    batch = draw_batch(samples, 16, 18, True, torch.Generator().manual_seed(0))
    operator = forward_operator(pairs).to(CPU, torch.float32)
    degradation = degradation_of_batch(batch, operator)
    inside = (..., slice(operator.margin, -operator.margin), slice(operator.margin, -operator.margin))
    residual = (degradation.forward(batch.hr) - batch.lr)[inside]
    wrong = (Degradation(batch.noise, operator.select(batch.rows)).forward(batch.hr) - batch.lr)[inside]
    assert float(residual.abs().max()) < 0.02 * float(batch.lr.max()) < 0.2 * float(wrong.abs().max()) * 10
    assert float(residual.square().mean()) < 0.01 * float(wrong.square().mean())
    torch.testing.assert_close(degradation.noise, torch.full_like(batch.noise, 0.5))  # sigma / (2 x median sigma)


# -- who is told ------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Backprojects the LR image in units of its noise, and keeps what it was told. Equivariant with its operator."""

    knows_degradation = True

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1, 1, 1, 1), 0.1))
        self.told: list[Degradation] = []

    def forward(self, lr: Tensor, degradation: Degradation) -> Tensor:
        self.told.append(degradation)
        return self.gain * degradation.adjoint(lr / degradation.noise)


def told_model(pairs: Pairs, kernel: np.ndarray | None = None) -> TrainedModel:
    """`Told` under the name of an architecture that it is not."""
    config = describe_model("fsrcnn", resolve_settings("fsrcnn"), pairs, Normalisation(2.0, pairs.scale))
    return TrainedModel("told", Told(), config, None if kernel is None else UsualKernel(kernel, None))


def lopsided_pairs(count: int, **options: Any) -> Pairs:
    """Each with an LR PSF of its own, off to one side."""
    pairs = blob_pairs(count, **options)
    psfs = [np.roll(gaussian_kernel(3 + 0.2 * row, 15), (1, row % 3), (0, 1)) for row in range(count)]
    return with_psfs(pairs, np.stack(psfs))


@pytest.mark.parametrize("given", ["own", "shared", "stored"])
def test_a_model_tells_its_network_kernels_and_noise_of_each_image(given: str) -> None:
    pairs, scale = lopsided_pairs(5), 2
    pairs = replace(pairs, lr_noise=np.random.default_rng(0).uniform(0.5, 1.5, pairs.lr.shape).astype("f4"))
    own = matching_kernels(pairs.hr_band, pairs.lr_band)
    assert own.shape[0] == 5
    kernels = {"own": own, "shared": own[1:2], "stored": own[2:3]}[given]
    model = told_model(pairs, own[2])
    answer = model.super_resolve(
        pairs.lr, pairs.lr_noise, CPU, batch_size=2, kernels=None if given == "stored" else kernels
    )
    amplitude = Normalisation(2.0, scale).amplitude(torch.from_numpy(pairs.lr_noise)).numpy()
    backprojected = ForwardOperator(kernels, scale).adjoint(torch.from_numpy(pairs.lr / pairs.lr_noise).double()) / 4
    np.testing.assert_allclose(answer, 0.1 * amplitude / 4 * backprojected.numpy(), rtol=0, atol=2e-6)
    assert [len(told.noise) for told in model.network.told] == [2, 2, 1]
    torch.testing.assert_close(model.network.told[1].noise, torch.from_numpy(pairs.lr_noise / amplitude)[2:4])


def test_pairs_tell_their_own_psfs() -> None:
    pairs = lopsided_pairs(3)
    kernels = matching_kernels(pairs.hr_band, pairs.lr_band)
    model = told_model(pairs)
    expected = model.super_resolve(pairs.lr, pairs.lr_noise, CPU, kernels=kernels)
    np.testing.assert_array_equal(model.super_resolve_pairs(pairs, CPU), expected)
    with pytest.raises(ValueError, match="no kernels were given, and it has none of its own"):
        model.super_resolve(pairs.lr, pairs.lr_noise, CPU)


def test_the_usual_kernel_is_the_mean_and_only_of_networks_that_need_one() -> None:
    pairs = lopsided_pairs(3)
    expected = matching_kernels(pairs.hr_band, pairs.lr_band).mean(0)
    found = usual_kernel(Told(), pairs)
    assert found is not None
    np.testing.assert_array_equal(found.kernel, expected)
    assert found.hr_band is not None
    np.testing.assert_array_equal(found.hr_band.psf, pairs.hr_band.psf)
    assert usual_kernel(nn.Identity(), pairs) is None
    assert not knows_degradation(nn.Identity())


def test_self_ensemble_turns_what_the_network_is_told() -> None:
    """An equivariant network answers alike under all symmetries, if its operator and noise turn with the image."""
    degradation = Degradation(torch.rand(2, 1, 6, 9) + 0.5, ForwardOperator(lopsided_kernels(2), 2).float())
    network, lr = Told(), noise(2, 1, 6, 9).float()
    with torch.inference_mode():
        torch.testing.assert_close(mean_over_symmetries(network, lr, degradation), network(lr, degradation))


def test_the_loop_tells_the_degradation_of_the_crops() -> None:
    pairs = lopsided_pairs(6)
    samples = load_samples(pairs, Normalisation(2.0, 2), "hr", CPU)
    settings = LoopSettings(steps=2, batch_size=6, accumulate=2, crop_size=8, checkpoint_interval=1)
    context = loss_context({"l1": 1.0}, pairs, Normalisation(2.0, 2), "hr", CPU, knows_degradation=True)
    trainer = Trainer(Told(), samples, settings, seed=3, context=context)
    drawn: list[Batch] = []
    draw = trainer._draw
    trainer._draw = lambda *given: drawn.append(draw(*given)) or drawn[-1]  # type: ignore[method-assign, func-returns-value]
    trainer.run(lambda *_: None)
    network = trainer.network
    assert isinstance(network, Told)
    assert len(drawn) == len(network.told) == 4
    operator = forward_operator(pairs)
    for batch, told in zip(drawn, network.told, strict=True):
        expected = degradation_of_batch(batch, operator)
        assert torch.equal(told.noise, batch.noise)
        torch.testing.assert_close(told.operator.kernels, expected.operator.kernels.float())
    assert float(network.gain.detach()) != pytest.approx(0.1, abs=1e-5)  # it learnt


def test_the_loop_needs_the_operator_of_a_network_that_knows_it_and_of_no_other() -> None:
    pairs = blob_pairs(2)
    samples, normalisation = load_samples(pairs, Normalisation(2.0, 2), "hr", CPU), Normalisation(2.0, 2)
    settings = LoopSettings(steps=1, batch_size=2, crop_size=8)
    with pytest.raises(InputError, match="needs the PSFs of both instruments"):
        Trainer(Told(), samples, settings, seed=0, context=LossContext())
    assert loss_context({"l1": 1.0}, pairs, normalisation, "hr", CPU).operator is None
    other = Trainer(build_network("fsrcnn", resolve_settings("fsrcnn"), 2), samples, settings, seed=0)
    assert other.operator is None


def test_only_a_model_with_a_kernel_writes_one(tmp_path: Path) -> None:
    pairs = blob_pairs(2)
    settings = resolve_settings("fsrcnn")
    config = describe_model("fsrcnn", settings, pairs, Normalisation(2.0, 2), data_sha256="ab" * 32)
    network, kernel = build_network("fsrcnn", settings, 2), lopsided_kernels(1)[0]
    for name, own in (("with", UsualKernel(kernel, None)), ("without", None)):
        save_model(TrainedModel(name, network, config, own), tmp_path / name, None)
    assert set(load_file(tmp_path / "without" / WEIGHTS_NAME)) == set(network.state_dict())
    assert load_model(tmp_path / "without", CPU).kernel is None
    loaded = load_model(tmp_path / "with", CPU).kernel
    assert loaded is not None
    assert loaded.hr_band is None
    assert loaded.kernel.dtype == np.float64
    np.testing.assert_array_equal(loaded.kernel, kernel)


def test_the_hr_psf_is_kept_with_the_kernel(tmp_path: Path) -> None:
    """The mean one, of pairs with PSFs of their own, sampled as it was; the kernels that follow are the pairs'."""
    pairs = blob_pairs(3)
    psfs = np.stack([gaussian_kernel(1.5 + 0.1 * row, 9) for row in range(3)])
    pairs = replace(pairs, hr_band=Band("sharp", 0.05, psfs, 0.03))
    settings = resolve_settings("fsrcnn")
    config = describe_model("fsrcnn", settings, pairs, Normalisation(2.0, 2), data_sha256="ab" * 32)
    network = build_network("fsrcnn", settings, 2)
    save_model(TrainedModel("told", network, config, usual_kernel(Told(), pairs)), tmp_path, None)
    loaded = load_model(tmp_path, CPU).kernel
    assert loaded is not None
    assert loaded.hr_band is not None
    assert (loaded.hr_band.instrument, loaded.hr_band.pixel_scale_arcsec) == ("sharp", 0.05)
    assert loaded.hr_band.psf_pixel_scale_arcsec == 0.03
    np.testing.assert_array_equal(loaded.hr_band.psf, psfs.mean(0))
    same = matching_kernels(loaded.hr_band, pairs.lr_band)
    np.testing.assert_array_equal(same, matching_kernels(replace(pairs.hr_band, psf=psfs.mean(0)), pairs.lr_band))
