"""Losses: closed forms, gradients by finite differences, and pixels that are not real."""

from contextlib import nullcontext
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from simulate.errors import InputError
from simulate.settings import Settings
from sr.losses import LossContext, LossName, LossWeights, build_loss
from sr.metrics import ssim
from sr.operators import ForwardOperator
from sr.samples import Batch, Samples, draw_batch, transform, undo_transform

from .test_operators import random_kernels

NAMES = get_args(LossName)
SCALE, CROP, BATCH = 2, 8, 3


class Encoder(nn.Module):
    """Two layers of fixed, smooth features."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.kernel: Tensor
        self.register_buffer("kernel", torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64))

    def features(self, images: Tensor) -> list[Tensor]:
        first = torch.tanh(nn.functional.conv2d(images, self.kernel.to(images.dtype)))
        return [first, first.mean((2, 3))]


def context(dtype: torch.dtype = torch.float64) -> LossContext:
    operator = ForwardOperator(random_kernels(5, 3), SCALE).to(dtype)
    return LossContext(data_range=2.0, operator=operator, content=Encoder().to(dtype))


def term(name: Any, known: LossContext | None = None) -> Any:
    """(output, batch) -> the term's value."""
    loss = build_loss({name: 1.0}, known or context())
    return lambda output, batch: loss(output, batch)[name]


def some_batch(dtype: torch.dtype = torch.float64, holes: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(BATCH, 1, *shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.ones(BATCH, 1, SCALE * CROP, SCALE * CROP, dtype=torch.bool)
    if holes:
        mask[0, 0, 6:9, 12:] = False
        mask[1] = False
    return Batch(
        lr=random(CROP, CROP),
        hr=random(SCALE * CROP, SCALE * CROP),
        mask=mask,
        noise=0.1 + random(CROP, CROP),
        rows=torch.tensor([4, 0, 2]),
        symmetry=torch.tensor([0, 3, 5]),
    )


def some_output(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(BATCH, 1, SCALE * CROP, SCALE * CROP, generator=generator, dtype=torch.float64).to(dtype)


def on_hr_pixels(images: Tensor) -> np.ndarray:
    return np.kron(images.numpy(), np.ones((SCALE, SCALE)))


# -- contracts of all terms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str, holes: bool) -> None:
    batch, output = some_batch(holes=holes), some_output().requires_grad_()
    value = term(name)
    torch.autograd.gradcheck(lambda one: value(one, batch), output, fast_mode=True)
    value(output, batch).backward()
    assert output.grad is not None
    assert (output.grad[0] != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_pixels_that_are_not_real_neither_count_nor_teach(name: str) -> None:
    batch = some_batch(holes=True)
    output = some_output()
    expected = term(name)(output, batch)
    output[~batch.mask], batch.hr[~batch.mask] = float("nan"), float("inf")
    batch.lr[1], batch.noise[1] = float("nan"), float("nan")  # an image that has no real pixel at all
    output.requires_grad_()
    value = term(name)(output, batch)
    value.backward()
    assert torch.equal(value, expected)
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert (output.grad[~batch.mask] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_a_real_pixel_gives_zero(name: str) -> None:
    batch, output = some_batch(), some_output().requires_grad_()
    batch.mask[:] = False
    value = term(name)(output, batch)
    value.backward()
    assert value.item() == 0
    assert output.grad is not None
    assert (output.grad == 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "content"])
def test_single_precision_is_kept_where_networks_compute_in_less(name: str) -> None:
    batch, output = some_batch(torch.float32, holes=True), some_output(torch.float32)
    exact = term(name)(some_output(), some_batch(holes=True))
    with torch.autocast("cpu", torch.bfloat16):
        value = term(name, context(torch.float32))(output, batch)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data fail when Python asks for their values, which is what makes a GPU wait."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know such tensors
    known = context()
    assert isinstance(known.operator, ForwardOperator)
    assert isinstance(known.content, Encoder)
    known = LossContext(known.data_range, known.operator.to("meta"), known.content.to("meta"))
    batch = some_batch(holes=True)
    batch = Batch(**{key: value.to("meta") for key, value in vars(batch).items() if value is not None})
    term(name, known)(some_output().to("meta").requires_grad_(), batch).backward()


# -- what each term is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("l1", (1 + 3) / 2), ("mse", (1 + 9) / 2), ("charbonnier", (np.hypot(1, 1e-3) + np.hypot(3, 1e-3)) / 2)],
)
def test_pixel_loss_is_the_mean_over_real_pixels(name: str, expected: float) -> None:
    empty = torch.empty(0)
    batch = Batch(
        lr=empty,
        hr=torch.tensor([[[[2.0, 2.0, 7.0]]]]),
        mask=torch.tensor([[[[True, True, False]]]]),
        noise=empty,
        rows=empty,
        symmetry=empty,
    )
    output = torch.tensor([[[[1.0, 5.0, float("nan")]]]], requires_grad=True)
    loss = term(name)(output, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad[..., 2] == 0


def test_ssim_is_that_of_torchmetrics_and_of_the_table() -> None:
    batch, output = some_batch(), some_output()
    _, similarity = structural_similarity_index_measure(
        output, batch.hr, gaussian_kernel=True, sigma=1.5, data_range=2.0, return_full_image=True
    )
    expected = 1 - similarity[..., 5:-5, 5:-5].mean()  # without the windows that torchmetrics completes by reflection
    assert term("ssim")(output, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    holed = some_batch(holes=True)
    one = ssim(output[:1], holed.hr[:1], 2.0, holed.mask[:1])  # the other image with real pixels has all of them
    windows = holed.mask[..., 5:-5, 5:-5].sum((1, 2, 3))
    other = ssim(output[2:], holed.hr[2:], 2.0)
    mean = (one * windows[0] + other * windows[2]) / windows.sum()
    assert term("ssim")(output, holed).item() == pytest.approx(1 - mean.item(), rel=1e-9)


def test_fourier_is_the_distance_of_spectra() -> None:
    batch, output = some_batch(), some_output()
    spectra = np.fft.fft2((output - batch.hr).numpy(), norm="ortho")
    assert term("fourier")(output, batch).item() == pytest.approx(np.abs(spectra).mean())
    y = torch.arange(16.0, dtype=torch.float64)[:, None].expand(16, 16)
    wave = 0.3 * torch.cos(2 * np.pi * 3 * y / 16)  # two frequencies of amplitude 16 * 0.3 / 2
    assert term("fourier")(batch.hr + wave, batch).item() == pytest.approx(2 * 16 * 0.3 / 2 / 256)
    shifted = term("fourier")(batch.hr.roll(1, -1), batch)  # the amplitudes are the same, the phases are not
    assert shifted.item() > 0.1


def test_chi_squared_is_in_units_of_the_noise_of_the_lr_pixel() -> None:
    batch = some_batch()
    noise = torch.from_numpy(on_hr_pixels(batch.noise))
    assert term("chi2")(batch.hr - 1.5 * noise, batch).item() == pytest.approx(1.5**2)
    holed = some_batch(holes=True)
    output = some_output()
    expected = (((output - holed.hr) / noise) ** 2)[holed.mask].mean()
    assert term("chi2")(output, holed).item() == pytest.approx(expected.item())


def test_flux_is_the_squared_relative_error_down_to_the_noise() -> None:
    batch = some_batch()
    batch.noise[:] = 1e-6
    assert term("flux")(1.1 * batch.hr, batch).item() == pytest.approx(0.01, rel=1e-6)
    batch.noise[:] = 0.5
    batch.hr[:] = 0  # an empty image: the total of 64 LR pixels has a noise of 8 * 0.5
    output = torch.full_like(batch.hr, 0.125)
    assert term("flux")(output, batch).item() == pytest.approx((0.125 * 64 / 4) ** 2)


def operator_batch(noise: float) -> tuple[Batch, Tensor, ForwardOperator]:
    """Crops under symmetries of images whose LR images an operator with lopsided kernels made, and their HR images."""
    operator = ForwardOperator(random_kernels(5, 5), SCALE)
    generator = torch.Generator().manual_seed(5)
    hr = torch.rand(5, 1, 32, 32, generator=generator, dtype=torch.float64)
    sigma = 0.5 + torch.rand(5, 1, 16, 16, generator=generator, dtype=torch.float64)
    lr = operator(hr) / SCALE**2 + noise * sigma
    samples = Samples(lr, hr, torch.ones_like(hr, dtype=torch.bool), sigma, torch.arange(5))
    batch = draw_batch(samples, 40, 10, True, generator)
    assert set(batch.symmetry.tolist()) == set(range(8))
    return batch, batch.hr, operator


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_data_consistency_of_the_truth_is_the_chi_squared_of_the_noise(noise: float) -> None:
    """In crops that are turned and mirrored, with a PSF of its own for every image and light from outside the crop."""
    batch, truth, operator = operator_batch(noise)
    value = term("data_consistency", LossContext(operator=operator))
    assert value(truth, batch).item() == pytest.approx(noise**2, abs=1e-12)
    assert value(truth.roll(1, -1), batch).item() > noise**2 + 1e-4


def test_data_consistency_leaves_out_what_it_cannot_know() -> None:
    """LR pixels whose light comes, by at most `margin` LR pixels, from HR pixels that are not real."""
    batch, truth, operator = operator_batch(0.0)
    margin = operator.margin
    batch.mask[:, :, 8, 9] = False
    output = truth.clone()
    output[~batch.mask] = 100.0
    value = term("data_consistency", LossContext(operator=operator))
    assert value(output, batch).item() == pytest.approx(0, abs=1e-12)
    for offset, counts in ((margin + 1, True), (margin, False)):  # the nearest LR pixel that counts, and its neighbour
        spoiled = batch.lr.clone()
        spoiled[:, :, 4 + offset, 4] += 1
        changed = Batch(**{**vars(batch), "lr": spoiled})
        assert (value(output, changed).item() > 1e-6) is counts


def test_data_consistency_and_ssim_refuse_crops_that_are_too_small() -> None:
    batch, truth, operator = operator_batch(0.0)
    small = Batch(**{**vars(batch), "lr": batch.lr[..., : 2 * operator.margin, : 2 * operator.margin]})
    with pytest.raises(InputError, match=rf"a crop_size of {2 * operator.margin + 1} or more"):
        term("data_consistency", LossContext(operator=operator))(truth, small)
    with pytest.raises(InputError, match="at least 11 HR pixels, found 10"):
        term("ssim")(truth[..., :10, :], batch)


def test_content_is_the_mean_distance_of_features_over_layers() -> None:
    batch, output = some_batch(), some_output()
    encoder = Encoder()
    pairs = zip(encoder.features(output), encoder.features(batch.hr), strict=True)
    expected = np.mean([((found - wanted) ** 2).mean().item() for found, wanted in pairs])
    assert term("content")(output, batch).item() == pytest.approx(expected)


# -- combination ------------------------------------------------------------------------------------------------------


def test_terms_come_with_their_weights() -> None:
    batch, output = some_batch(), some_output()
    terms = build_loss({"l1": 2.0, "ssim": 0.1}, context())(output, batch)
    assert list(terms) == ["l1", "ssim"]
    assert terms["l1"].item() == pytest.approx(2 * (output - batch.hr).abs().mean().item())
    assert terms["ssim"].item() == pytest.approx(0.1 * term("ssim")(output, batch).item())


def test_weights_are_a_name_or_a_table() -> None:
    class Section(Settings):
        loss: LossWeights = "l1"  # type: ignore[assignment]

    assert Section().loss == Section(loss="l1").loss == {"l1": 1.0}
    weights = {"l1": 1.0, "data_consistency": 0.5}
    assert Section(loss=weights).loss == weights
    for wrong in ("l3", {}, {"l1": 0}, {"l1": 1, "vgg": 1}):
        with pytest.raises(ValidationError):
            Section(loss=wrong)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("ssim", "data range"), ("data_consistency", "point spread functions"), ("content", "content encoder")],
)
def test_a_term_says_what_it_lacks(name: Any, missing: str) -> None:
    with pytest.raises(InputError, match=f"loss {name}: needs .*{missing}"):
        build_loss({"l1": 1.0, name: 1.0})


def test_symmetries_are_undone() -> None:
    images = some_output()[:1].expand(8, 1, -1, -1)
    symmetry = torch.arange(8)
    assert torch.equal(undo_transform(transform(images, symmetry), symmetry), images)
