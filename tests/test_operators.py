"""The forward operator: an exact adjoint, flux, centring, and agreement with the simulator and with closed forms."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve
from torch import Tensor

from simulate.generate import SimulateSettings
from simulate.instruments import PSFSettings, noise_sigma_njy, psf_kernel
from simulate.sample import draw_sample, instruments, view_of
from simulate.shards import Band
from simulate.torch_engine.imaging import observe
from simulate.torch_engine.render import render_batch
from sr.operators import UNKNOWN_SHARE, ForwardOperator, forward_operator, matching_kernels

from .conftest import gaussian_kernel
from .test_evaluate import gaussian_through_instruments


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_kernels(count: int, size: int) -> np.ndarray:
    """Kernels without any symmetry."""
    kernels = np.random.default_rng(1).uniform(0, 1, (count, size, size))
    return kernels / kernels.sum((1, 2), keepdims=True)


CASES = [(1, 5, 2, (7, 9)), (3, 9, 3, (5, 6)), (1, 31, 4, (3, 5)), (3, 1, 2, (4, 4))]  # kernels, size, scale, LR shape


@pytest.mark.parametrize(("count", "size", "scale", "shape"), CASES)
def test_adjoint(count: int, size: int, scale: int, shape: tuple[int, int]) -> None:
    operator = ForwardOperator(random_kernels(count, size), scale)
    x, y = noise(3, 2, scale * shape[0], scale * shape[1]), noise(3, 2, *shape, seed=1)
    rows = torch.tensor([2, 0, 1]) if count == 3 else None
    one, other = (operator(x, rows) * y).sum(), (x * operator.adjoint(y, rows)).sum()
    assert abs(one - other) < 1e-12 * x.norm() * y.norm()


@pytest.mark.parametrize(("count", "size", "scale", "shape"), CASES)
def test_forward_is_convolution_and_sums_of_pixels(count: int, size: int, scale: int, shape: tuple[int, int]) -> None:
    kernels = random_kernels(count, size)
    operator = ForwardOperator(kernels, scale)
    x = noise(3, 2, scale * shape[0], scale * shape[1])
    rows = [2, 0, 1]
    seen = operator(x, torch.tensor(rows)).numpy()
    in_order = operator(x).numpy()
    for image in range(3):
        for channel in range(2):
            for kernel, result in ((kernels[rows[image] % count], seen), (kernels[image % count], in_order)):
                wide = convolve(x[image, channel].numpy(), kernel, mode="full", method="direct")
                middle = size // 2
                blurred = wide[middle:, middle:][: x.shape[2], : x.shape[3]]
                expected = blurred.reshape(shape[0], scale, shape[1], scale).sum((1, 3))
                np.testing.assert_allclose(result[image, channel], expected, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_flux_is_kept_and_the_centroid_does_not_move(scale: int) -> None:
    pairs = gaussian_through_instruments(scale, 24, False)
    operator = forward_operator(pairs)
    size = 24 * scale
    spot = torch.zeros(1, 1, size, size, dtype=torch.float64)
    spot[0, 0, size // 2 - 3, size // 2 + 2] = 1.0
    spot[0, 0, size // 2 + 1, size // 2] = 0.5
    seen = operator(spot)
    assert float(seen.sum()) == pytest.approx(1.5, abs=1e-12)

    def centroid_arcsec(image: Tensor, pixel_scale_arcsec: float) -> list[float]:
        axis = (torch.arange(len(image[0, 0]), dtype=torch.float64) + 0.5) * pixel_scale_arcsec
        return [float((image.sum(other).flatten() * axis).sum() / image.sum()) for other in (3, 2)]

    bands = pairs.hr_band, pairs.lr_band
    before, after = (
        centroid_arcsec(image, band.pixel_scale_arcsec) for image, band in zip((spot, seen), bands, strict=True)
    )
    assert after == pytest.approx(before, abs=1e-5)  # a blurred spot's place inside its LR pixel is nearly forgotten


@pytest.mark.parametrize(
    "psf",
    [
        PSFSettings(fwhm_arcsec=0.16),
        PSFSettings(kind="moffat", fwhm_arcsec=0.2, moffat_beta=3.0),
        PSFSettings(kind="airy", fwhm_arcsec=0.12, airy_obscuration=0.3),
    ],
)
def test_behind_an_ideal_hr_instrument_it_is_the_simulators_instrument(psf: PSFSettings) -> None:
    """An HR image without any blur is a grid of rays, one an HR pixel."""
    pixel, scale, size = 0.05, 3, 48
    hr_band = Band("ideal", pixel, np.ones((1, 1)), pixel)
    lr_band = Band("lr", scale * pixel, psf_kernel(psf, pixel), pixel)
    light = noise(2, size, size).abs()
    operator = ForwardOperator(matching_kernels(hr_band, lr_band), scale)
    expected = observe(light, psf, pixel, scale)
    np.testing.assert_allclose(operator(light[:, None])[:, 0], expected, rtol=0, atol=1e-12 * float(expected.max()))


@pytest.mark.parametrize(("scale", "psf_per_sample"), [(2, False), (3, True), (4, False)])
def test_from_one_gaussian_instrument_to_another(scale: int, psf_per_sample: bool) -> None:
    """Closed form: a Gaussian source, PSFs of 0.5 and 0.9 LR pixels, pixels integrated exactly."""
    pairs = gaussian_through_instruments(scale, 24, psf_per_sample)
    operator = forward_operator(pairs)
    assert len(operator.kernels) == (2 if psf_per_sample else 1)
    seen = operator(torch.from_numpy(pairs.hr).double()).numpy()
    inside = np.s_[:, :, operator.margin : -operator.margin, operator.margin : -operator.margin]
    assert np.abs(seen - pairs.lr)[inside].max() < 2e-5 * pairs.lr.max()


@pytest.mark.parametrize(
    "settings",
    [
        SimulateSettings(),
        SimulateSettings(hr_instrument="hst-acs-f814w-0042", lr_instrument="hsc-i", hr_size=128, scale=4),
    ],
)
def test_it_turns_simulated_hr_images_into_lr_images(settings: SimulateSettings) -> None:
    """What is left is far below the noise: it adds less than 1e-5 to a chi squared per pixel of 1."""
    settings = settings.resolve()
    scenes = [draw_sample(settings, 3, index, "train")[0] for index in range(3)]
    hr, lr = render_batch(scenes, view_of(settings), torch.float64, torch.device("cpu"))
    spacing = settings.ray_spacing_arcsec
    bands = [
        Band(one.name, one.pixel_scale_arcsec, psf_kernel(one.psf, spacing), spacing) for one in instruments(settings)
    ]
    operator = ForwardOperator(matching_kernels(*bands), settings.scale)
    residual = (operator(hr[:, None])[:, 0] - lr) / noise_sigma_njy(instruments(settings)[1], lr)
    assert float(lr.max() / instruments(settings)[1].background_sigma_njy) > 30
    assert float((residual**2).mean()) < 1e-5


def test_the_margin_holds_off_light_from_outside_the_frame() -> None:
    kernel = gaussian_kernel(8, 41)
    operator = ForwardOperator(kernel[None], 2)
    frame, outside = torch.zeros(1, 1, 80, 80, dtype=torch.float64), torch.ones(1, 1, 80, 80, dtype=torch.float64)
    outside[..., 20:60, 20:60] = 0
    frame[..., 20:60, 20:60] = noise(40, 40)
    whole = operator(frame + outside)[..., 10:30, 10:30]
    cut = operator(frame[..., 20:60, 20:60])
    margin = operator.margin
    difference = (whole - cut).abs()
    inside = difference[..., margin:-margin, margin:-margin]
    assert float(inside.max()) < 4 * UNKNOWN_SHARE  # of 4 HR pixels of surface brightness 1
    assert float(difference[..., margin - 2, 10]) > 4 * UNKNOWN_SHARE


def test_noise_is_not_divided_by_what_the_hr_instrument_does_not_see() -> None:
    """An HR PSF that is cut off in frequency, as a real telescope's, and an LR PSF that is not quite."""
    hr_band = Band("hr", 1.0, gaussian_kernel(4, 25), 1.0)  # transmits 1e-6 at the Nyquist frequency
    lr_band = Band("lr", 2.0, gaussian_kernel(4.2, 25) * 0.99 + 0.01 * gaussian_kernel(1, 25), 1.0)
    kernels = matching_kernels(hr_band, lr_band)
    assert kernels.sum() == pytest.approx(1, abs=1e-14)
    assert np.abs(np.fft.fft2(kernels[0], (64, 64))).max() < 1.01  # without the floor: 359


def test_images_in_single_precision_stay_so() -> None:
    operator = ForwardOperator(random_kernels(1, 5), 2)
    assert operator(torch.zeros(1, 1, 8, 8)).dtype == operator.adjoint(torch.zeros(1, 1, 4, 4)).dtype == torch.float32
    assert list(operator.state_dict()) == []  # nothing of it belongs into a checkpoint
