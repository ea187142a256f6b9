"""Richardson-Lucy deconvolution: the textbook's steps, a rising likelihood, flux, and what it is worth."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.signal import convolve

from simulate.shards import Band, Pairs
from sr.classical import (
    OFFSET_SIGMAS,
    RICHARDSON_LUCY_ITERATIONS,
    WIENER_NOISE_TO_SIGNAL,
    richardson_lucy,
    tune,
    tune_richardson_lucy,
    wiener,
)
from sr.metrics import CHUNK, data_range_of, psnr
from sr.operators import forward_operator
from sr.trained_model import interpolation_model

from .conftest import blob_pairs, gaussian_kernel
from .test_evaluate import gaussian_through_instruments

CPU = torch.device("cpu")
FWHM = 2.3548 * 1.2  # HR pixels, of the blur in `blob_pairs` at scale 2


def blobs_with_their_psf(count: int, seed: int) -> Pairs:
    """Blobs as an ideal HR instrument sees them, and the PSF that blurred their LR images."""
    pairs = blob_pairs(count, seed=seed)
    return dataclasses.replace(
        pairs,
        hr_band=Band("sharp", 0.05, np.ones((1, 1)), 0.05),
        lr_band=Band("blurred", 0.1, gaussian_kernel(FWHM, 11), 0.05),
    )


def mean_psnr(images: np.ndarray, pairs: Pairs, data_range: float) -> float:
    return float(psnr(torch.from_numpy(images), torch.from_numpy(pairs.hr), data_range).mean())


def test_one_iteration_is_the_textbooks() -> None:
    """With convolutions by scipy, and the transpose written out."""
    pairs = blobs_with_their_psf(1, seed=0)
    kernel = gaussian_kernel(FWHM, 11)
    sigma = float(np.median(pairs.lr_noise))
    counts = pairs.lr[0, 0].astype("f8") + OFFSET_SIGMAS * sigma

    def observed(image: np.ndarray) -> np.ndarray:
        return convolve(image, kernel, mode="same").reshape(16, 2, 16, 2).sum((1, 3))

    def transposed(image: np.ndarray) -> np.ndarray:
        return convolve(np.kron(image, np.ones((2, 2))), kernel, mode="same")

    before, after = (richardson_lucy(pairs, iterations, CPU)[0, 0].astype("f8") for iterations in (4, 5))
    expected = before * transposed(counts / (observed(before) + OFFSET_SIGMAS * sigma)) / transposed(np.ones((16, 16)))
    expected *= pairs.lr.sum() / observed(expected).sum()
    np.testing.assert_allclose(after, expected, rtol=1e-4)
    assert np.abs(after - before).max() > 0.01 * before.max()


def test_the_likelihood_rises_the_flux_stays_and_no_pixel_falls_below_zero() -> None:
    pairs = blobs_with_their_psf(3, seed=1)
    assert pairs.lr.min() < 0
    operator = forward_operator(pairs)
    offset = OFFSET_SIGMAS * np.median(pairs.lr_noise)
    counts = torch.from_numpy(pairs.lr).double() + offset
    likelihoods = []
    for iterations in (0, 1, 2, 3, 5, 20, 50, 100, 200):
        images = richardson_lucy(pairs, iterations, CPU)
        assert images.min() >= 0
        seen = operator(torch.from_numpy(images).double())
        np.testing.assert_allclose(seen.sum((1, 2, 3)), pairs.lr.sum((1, 2, 3)), rtol=1e-5)
        likelihoods.append((counts * (seen + offset).log() - seen).sum((1, 2, 3)))
    for before, after in pairwise(likelihoods):
        assert (after > before).all()


@pytest.mark.parametrize(("scale", "psf_per_sample"), [(2, False), (3, True)])
def test_without_noise_it_finds_the_hr_image(scale: int, psf_per_sample: bool) -> None:
    pairs = gaussian_through_instruments(scale, 24, psf_per_sample)
    bicubic = interpolation_model("bicubic", pairs).super_resolve(pairs.lr, pairs.lr_noise, CPU)
    assert np.abs(bicubic - pairs.hr).max() > 0.05 * pairs.hr.max()
    for iterations, largest in ((20, 0.05), (150, 0.01)):
        error = np.abs(richardson_lucy(pairs, iterations, CPU) - pairs.hr).max()
        assert error < largest * pairs.hr.max()


def test_an_image_without_light_stays_finite_and_faint() -> None:
    pairs = blobs_with_their_psf(2, seed=2)
    pairs.lr[:] = np.random.default_rng(0).normal(-0.02, 0.05, pairs.lr.shape)
    images = richardson_lucy(pairs, 20, CPU)
    assert (images >= 0).all()
    assert (images.sum((1, 2, 3)) < 1.01 * 16 * 0.05 / 0.9).all()  # the noise of 16 x 16 pixels


def test_tuned_on_other_blobs_it_beats_bicubic_and_wiener() -> None:
    validation, test = blobs_with_their_psf(12, seed=3), blobs_with_their_psf(12, seed=4)
    data_range = data_range_of(validation.hr, validation.hr_mask)
    iterations = tune_richardson_lucy(validation, data_range, CPU)
    quality = {
        tried: mean_psnr(richardson_lucy(validation, tried, CPU), validation, data_range)
        for tried in RICHARDSON_LUCY_ITERATIONS
    }
    assert iterations == max(quality, key=lambda tried: quality[tried])
    assert RICHARDSON_LUCY_ITERATIONS[0] < iterations < RICHARDSON_LUCY_ITERATIONS[-1]
    noise_to_signal = tune(wiener, WIENER_NOISE_TO_SIGNAL, validation, data_range)
    bicubic = interpolation_model("bicubic", test).super_resolve(test.lr, test.lr_noise, CPU)
    rivals = [mean_psnr(images, test, data_range) for images in (bicubic, wiener(test, noise_to_signal))]
    assert mean_psnr(richardson_lucy(test, iterations, CPU), test, data_range) > max(rivals) + 0.3


def test_images_do_not_depend_on_their_neighbours() -> None:
    pairs = blobs_with_their_psf(CHUNK + 2, seed=5)
    together = richardson_lucy(pairs, 3, CPU)
    alone = richardson_lucy(pairs.select(np.array([CHUNK + 1])), 3, CPU)
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-5)
