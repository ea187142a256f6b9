"""Degradation of real images: flux, position, width and noise against closed forms and brute force."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from simulate.errors import InputError
from sr.observed.degrade import degrade, is_resampled, make_blur
from sr.observed.noise import correlated_growth
from sr.observed.psf import SIGMA_PER_FWHM, Psf, gaussian_psf, mend_psf
from sr.observed.resampling import blur_and_bin, overlap_matrix, real_pixels, rebin


def gaussian_image(shape: tuple[int, int], sigma: float, centre: tuple[float, float]) -> np.ndarray:
    y, x = np.indices(shape)
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * sigma**2))


def moments(image: np.ndarray) -> tuple[float, float, float, float]:
    """Centroid (y, x) and variance along both axes, in pixels."""
    y, x = np.indices(image.shape)
    total = image.sum()
    cy, cx = (image * y).sum() / total, (image * x).sum() / total
    return cy, cx, (image * (y - cy) ** 2).sum() / total, (image * (x - cx) ** 2).sum() / total


def sampled_gaussian(fwhm_arcsec: float, pixel_arcsec: float, size: int = 61) -> np.ndarray:
    middle = (size - 1) / 2
    return gaussian_image((size, size), fwhm_arcsec * SIGMA_PER_FWHM / pixel_arcsec, (middle, middle))


def run_degrade(image, native, pixel, hr_size, scale, hr_psf, lr_psf, real=None, sigma=1e-15, seed=0):
    blur = make_blur(hr_psf, native, lr_psf, pixel * scale, pixel)
    real = np.ones(image.shape, bool) if real is None else real
    noise, generator = np.full(image.shape, sigma), np.random.default_rng(seed)
    return degrade(image, real, noise, native, blur, pixel, hr_size, scale, 1.0, None, generator)


@pytest.mark.parametrize(("ratio", "offset"), [(1.0, 0.0), (2.0, 1.0), (1.6667, 0.35), (2.3, -1.4), (0.7, 0.25)])
def test_overlap_matrix_equals_brute_force(ratio: float, offset: float) -> None:
    fine = 2000  # sub-pixels per input pixel
    matrix = overlap_matrix(9, 4, ratio, offset)
    centres = (np.arange(9 * fine) + 0.5) / fine
    expected = np.zeros((4, 9))
    for output in range(4):
        inside = (centres >= offset + output * ratio) & (centres < offset + (output + 1) * ratio)
        expected[output] = inside.reshape(9, fine).mean(axis=1)
    np.testing.assert_allclose(matrix, expected, atol=2 / fine)


def test_rebin_conserves_flux_and_marks_pixels_that_are_not_covered() -> None:
    image = np.random.default_rng(0).uniform(size=(31, 40))
    rows, columns = overlap_matrix(31, 24, 1.5, -2.5), overlap_matrix(40, 30, 1.5, -2.5)
    assert rebin(image, rows, columns).sum() == pytest.approx(image.sum(), rel=1e-12)
    real = np.ones(image.shape, bool)
    real[10, 20] = False
    covered = real_pixels(real, rows, columns, 1.5)
    assert not covered[:2].any()
    assert not covered[int(12.5 / 1.5), int(22.5 / 1.5)]
    inside = covered[2:22, 2:28]  # of whole pixels; the bad one touches at most 2 x 2
    assert 1 <= (~inside).sum() <= 4


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_blur_and_bin_equals_direct_sums(scale: int) -> None:
    rng = np.random.default_rng(1)
    image, kernel = rng.normal(size=(12, 18)), rng.normal(size=(5, 5))
    padded = np.pad(image, 2, mode="symmetric")
    expected = np.zeros((12, 18))
    for y in range(12):
        for x in range(18):
            expected[y, x] = (padded[y : y + 5, x : x + 5] * kernel[::-1, ::-1]).sum()
    expected = expected.reshape(12 // scale, scale, 18 // scale, scale).sum((1, 3))
    np.testing.assert_allclose(blur_and_bin(image, kernel, scale), expected, atol=1e-12)


def test_variance_of_blurred_noise_equals_a_monte_carlo() -> None:
    rng = np.random.default_rng(2)
    kernel = gaussian_image((7, 7), 1.2, (3, 3)) / gaussian_image((7, 7), 1.2, (3, 3)).sum()
    sigma = rng.uniform(0.5, 2, (24, 24))
    draws = np.array([blur_and_bin(rng.normal(0, sigma), kernel, 2) for _ in range(3000)])
    predicted = blur_and_bin(sigma**2, kernel, 2, power=2)
    inner = np.s_[2:-2, 2:-2]  # at the edges mirrored noise is not independent
    np.testing.assert_allclose(draws.var(axis=0)[inner], predicted[inner], rtol=0.15)
    assert draws.var(axis=0)[inner].mean() == pytest.approx(predicted[inner].mean(), rel=0.02)


def test_matching_kernel_of_two_gaussians_is_the_gaussian_of_the_difference() -> None:
    pixel = 0.05
    kernel = make_blur(gaussian_psf(0.12), pixel, gaussian_psf(0.25), 2 * pixel, pixel).kernel
    middle = len(kernel) // 2
    sigma = np.sqrt(0.25**2 - 0.12**2) * SIGMA_PER_FWHM / pixel
    expected = gaussian_image(kernel.shape, sigma, (middle, middle))
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-3 * kernel.max())


@pytest.mark.parametrize("includes_pixel", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("native", "count"), [(0.05, 201), (0.03, 332), (0.03, 333), (0.025, 400), (0.025, 401)])
def test_gaussian_keeps_flux_and_centre_and_gets_the_analytic_width(
    native: float, count: int, scale: int, includes_pixel: bool
) -> None:
    pixel, sigma_arcsec = 0.05, 0.25
    from_middle = np.array([0.31, -0.22])  # arcsec
    image = gaussian_image((count, count), sigma_arcsec / native, tuple((count - 1) / 2 + from_middle / native))
    hr_psf, lr_psf = gaussian_psf(0.15), gaussian_psf(0.3)
    hr_psf = replace(hr_psf, includes_pixel=includes_pixel)
    pair = run_degrade(image, native, pixel, 144, scale, hr_psf, lr_psf)

    assert pair.hr.sum() == pytest.approx(image.sum(), rel=1e-10)
    assert pair.lr.sum() == pytest.approx(image.sum(), rel=1e-10)
    hr_y, hr_x, *_ = moments(pair.hr)
    lr_y, lr_x, lr_yy, lr_xx = moments(pair.lr)
    # LR pixel i covers HR pixels scale i ... scale i + scale - 1
    assert (hr_y + 0.5) / scale - 0.5 == pytest.approx(lr_y, abs=1e-6)
    assert (hr_x + 0.5) / scale - 0.5 == pytest.approx(lr_x, abs=1e-6)
    # Whole pixels are never split, so that a crop may lie half a native pixel beside the middle
    tolerance = 1e-6 if is_resampled(native, pixel) else native / 2 + 1e-6
    assert (np.array([hr_y, hr_x]) - 71.5) * pixel == pytest.approx(from_middle, abs=tolerance)
    # What LR is: the scene (source without HR's PSF and pixel), LR's PSF and LR's pixel, whose variance is width^2 / 12
    # (0.1 % of the whole for the native pixel: counted twice or not at all, it would be seen)
    hr_variance = 0.15**2 * SIGMA_PER_FWHM**2 + (0 if includes_pixel else native**2 / 12)
    expected = sigma_arcsec**2 - hr_variance + 0.3**2 * SIGMA_PER_FWHM**2 + (scale * pixel) ** 2 / 12
    assert lr_yy * (scale * pixel) ** 2 == pytest.approx(expected, rel=3e-4)
    assert lr_xx * (scale * pixel) ** 2 == pytest.approx(expected, rel=3e-4)


def test_small_image_is_padded_and_masked_and_pixels_that_are_not_real_are_zero() -> None:
    image = np.ones((20, 24))
    real = np.ones(image.shape, bool)
    real[9, 9] = False
    pair = run_degrade(image, 0.05, 0.05, 24, 2, gaussian_psf(0.1), gaussian_psf(0.2), real)
    assert pair.hr.shape == (24, 24)
    assert pair.lr.shape == (12, 12)
    assert pair.hr_mask.sum() == 20 * 24 - 1
    np.testing.assert_array_equal(pair.hr, pair.hr_mask.astype(float))
    assert (pair.lr_noise > 0).all()


def test_noise_has_the_asked_size_and_the_map_says_so() -> None:
    rng = np.random.default_rng(3)
    sky = rng.normal(0, 0.7, (200, 200))
    blur = make_blur(gaussian_psf(0.1), 0.05, gaussian_psf(0.2), 0.1, 0.05)
    arguments = (np.ones(sky.shape, bool), np.full(sky.shape, 0.7), 0.05, blur, 0.05, 160, 2)
    by_factor = degrade(sky, *arguments, 3.0, None, np.random.default_rng(4))
    assert by_factor.lr_noise == pytest.approx(3 * 2 * 0.7, rel=0.04)  # as exact as the sky can be measured
    assert by_factor.lr.std() == pytest.approx(np.median(by_factor.lr_noise), rel=0.03)
    by_sigma = degrade(sky, *arguments, 3.0, 5.0, np.random.default_rng(4))
    assert by_sigma.lr_noise == pytest.approx(5.0, rel=1e-6)
    # Less than HR's own noise leaves cannot be had: then nothing is added, and the map tells what is there
    quiet = degrade(sky, *arguments, 1.0, 0.01, np.random.default_rng(4))
    assert quiet.lr.std() == pytest.approx(np.median(quiet.lr_noise), rel=0.05)
    np.testing.assert_array_equal(by_factor.lr, degrade(sky, *arguments, 3.0, None, np.random.default_rng(4)).lr)


def drizzled(size: int, native: float, pixel: float, dithers: int, generator: np.random.Generator) -> np.ndarray:
    """(size,size) sum of `dithers` exposures of independent noise, each pixel spread over the finer ones it covers."""
    total, ratio = np.zeros((size, size)), pixel / native
    count = int(size * ratio) + 2
    for _ in range(dithers):
        rows, columns = (overlap_matrix(count, size, ratio, offset) for offset in generator.uniform(0, 1, 2))
        total += rebin(generator.normal(size=(count, count)), rows, columns)
    return total


@pytest.mark.parametrize("native", [0.05, 0.03])
@pytest.mark.parametrize("bright", [False, True])
@pytest.mark.parametrize("noise", [{}, {"noise_factor": 2.0}, {"noise_sigma": 3.0}], ids=str)
def test_the_lr_noise_of_drizzled_images_is_the_scatter_of_their_sky(
    native: float, bright: bool, noise: dict[str, float]
) -> None:
    generator = np.random.default_rng(11)
    size = round(16 / native)
    sky = drizzled(size, 0.08, native, 6, generator)
    sky /= sky.std()
    noise_map = np.ones(sky.shape)  # as it is measured, pixel by pixel
    galaxy = gaussian_image(sky.shape, 2.5 / native, (size / 2, size / 2)) * 300 if bright else 0 * sky
    blur = make_blur(gaussian_psf(0.1), native, gaussian_psf(0.2), 0.1, 0.05)
    choices = {"noise_factor": 1.0, "noise_sigma": None, **noise}
    arguments = (np.ones(sky.shape, bool), noise_map, native, blur, 0.05, 280, 2)

    def lr(image: np.ndarray) -> tuple[np.ndarray, float]:
        pair = degrade(image + galaxy, *arguments, **choices, generator=np.random.default_rng(4))
        return pair.lr, float(np.median(pair.lr_noise))

    noisy, stored = lr(sky)
    quiet = degrade(galaxy, *arguments, 1.0, 1e-9, np.random.default_rng(4)).lr  # nothing added
    scatter = (noisy - quiet)[8:-8, 8:-8].std()
    assert stored == pytest.approx(scatter, rel=0.06)
    # What a telescope gives that is as deep: the sums of the noise that is there
    side = round(0.1 / native) if native == 0.05 else None
    if side and not noise:
        summed = sky[: size // side * side, : size // side * side].reshape(size // side, side, size // side, side)
        assert stored == pytest.approx(summed.sum((1, 3)).std(), rel=0.05)
        assert stored > 1.3 * side  # more than if it were independent


@pytest.mark.parametrize("ratio", [1.0, 2.0, 5 / 3])
def test_growth_of_correlated_noise_is_that_of_independent_noise_blurred(ratio: float) -> None:
    weights, length = np.random.default_rng(0).uniform(size=(3, 3)), 0.9
    shares = np.pad(overlap_matrix(int(np.ceil(3 * ratio)), 3, ratio, 0.0), ((0, 0), (9, 9)))
    native = shares.T @ weights @ shares
    point = np.zeros((19, 19))
    point[9, 9] = 1
    correlated = (gaussian_filter(native, length) ** 2).sum() / (gaussian_filter(point, length) ** 2).sum()
    independent = sum(
        weights[y, x] ** 2 * (np.outer(shares[y], shares[x]) ** 2).sum() for y in range(3) for x in range(3)
    )
    assert correlated_growth(weights, ratio, length) == pytest.approx(correlated / independent, rel=5e-3)


def test_light_is_not_taken_for_correlated_noise() -> None:
    """A galaxy that fills the image leaves no sky; then noise is at most what full correlation makes of it."""
    galaxy = 1e4 * gaussian_image((60, 60), 12, (30, 30))
    blur = make_blur(gaussian_psf(0.1), 0.05, gaussian_psf(0.2), 0.1, 0.05)
    pair = degrade(
        galaxy, np.ones((60, 60), bool), np.ones((60, 60)), 0.05, blur, 0.05, 48, 2, 1.0, None, np.random.default_rng(0)
    )
    assert 2 * 0.99 <= np.median(pair.lr_noise) <= 2 * 2 * 1.01


def test_psf_of_any_size_sampling_and_centring_gives_the_same_kernel() -> None:
    pixel, target = 0.05, gaussian_psf(0.25)

    def kernel(psf: Psf) -> np.ndarray:
        return make_blur(psf, pixel, target, 2 * pixel, pixel).kernel

    expected = kernel(gaussian_psf(0.12))
    for size, sampling, shift in ((60, 0.0125, 0.0), (61, 0.0125, 1.7), (31, 0.03, 0.3), (24, 0.05, -0.25)):
        middle = (size - 1) / 2
        image = gaussian_image((size, size), 0.12 * SIGMA_PER_FWHM / sampling, (middle + shift, middle - shift))
        psf = mend_psf(37 * image.astype(">f4"), sampling, False, "psf.fits [PSF]")
        np.testing.assert_allclose(kernel(psf), expected, atol=2e-3 * expected.max())
        assert any("normalised" in note for note in psf.notes)
        assert any("re-centred" in note for note in psf.notes) == (abs(shift) * np.sqrt(2) > 0.1)


def test_coarse_psf_gives_a_kernel_that_does_not_ring() -> None:
    coarse = mend_psf(sampled_gaussian(0.17, 0.1, 21), 0.1, True, "vis.fits [PSF]")
    blur = make_blur(gaussian_psf(0.08), 0.05, coarse, 0.1, 0.05)
    assert -blur.kernel[blur.kernel < 0].sum() < 0.05
    assert blur.lr_psf.shape[0] % 2 == 1
    assert blur.lr_psf.sum() == pytest.approx(1)
    assert np.unravel_index(blur.lr_psf.argmax(), blur.lr_psf.shape) == (blur.lr_psf.shape[0] // 2,) * 2


def test_fwhm_is_that_of_the_gaussian() -> None:
    assert gaussian_psf(0.16).fwhm_arcsec == pytest.approx(0.16, rel=0.02)
    assert mend_psf(sampled_gaussian(0.25, 0.05), 0.05, True, "a").fwhm_arcsec == pytest.approx(0.25, rel=0.03)


def test_psf_is_mended_or_refused_with_a_reason() -> None:
    good = sampled_gaussian(0.2, 0.05, 21)
    holed = good.copy()
    holed[3, 3] = np.nan
    assert "1 pixels that are not finite set to 0" in mend_psf(holed, 0.05, True, "a").notes
    negative = good / good.sum()
    negative[0] -= 0.02 / 21
    psf = mend_psf(negative, 0.05, True, "a")
    assert any("negative pixels" in note for note in psf.notes)
    assert psf.image.min() == 0
    assert psf.image.sum() == pytest.approx(1)
    cube = np.stack([good, np.where(np.arange(21)[:, None] == 0, -0.1, good), good * 3])
    assert "average of 2 of 3 PSFs" in " ".join(mend_psf(cube, 0.05, True, "a").notes)
    for bad in (-good, np.zeros((5, 5)), np.full((5, 5), np.nan), good - 0.2):
        with pytest.raises(InputError, match=r"psf.fits \[PSF\]: not a PSF"):
            mend_psf(bad, 0.05, True, "psf.fits [PSF]")
    with pytest.raises(InputError, match=r"psf.fits \[PSF\]: expected a PSF image"):
        mend_psf(np.ones(9), 0.05, True, "psf.fits [PSF]")
