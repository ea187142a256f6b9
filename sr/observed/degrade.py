"""A real high-resolution image as a blurrier instrument with larger pixels and more noise would have seen it."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve

from .noise import correlated_growth, noise_correlation_length
from .psf import Psf, frequencies, matching_kernel, optics_transfer, sampled_psf
from .resampling import blur_and_bin, overlap_matrix, real_pixels, rebin

SAME_SCALE = 1e-3
"""Pixel scales that differ by less than this share count as one."""


@dataclass(frozen=True, eq=False)
class Blur:
    """What turns HR pixels into LR ones: `kernel` (k,k), and both PSFs for storage (m,m), all on the HR grid."""

    kernel: np.ndarray
    hr_psf: np.ndarray
    lr_psf: np.ndarray


@dataclass(frozen=True, eq=False)
class OnePair:
    """An HR image with its mask (H,W) and the LR image with its 1-sigma noise (h,w)."""

    hr: np.ndarray
    hr_mask: np.ndarray
    lr: np.ndarray
    lr_noise: np.ndarray


def is_resampled(native_arcsec: float, target_arcsec: float) -> bool:
    """True unless the target pixel is a whole multiple of the native one."""
    ratio = target_arcsec / native_arcsec
    return abs(ratio / max(round(ratio), 1) - 1) > SAME_SCALE


def make_blur(
    hr_psf: Psf, hr_native_arcsec: float, lr_psf: Psf, lr_native_arcsec: float, pixel_scale_arcsec: float
) -> Blur:
    """The matching kernel between two PSFs on a grid of `pixel_scale_arcsec`; PSFs are kept out to 4 FWHM of LR's."""
    stored = int(np.ceil(4 * lr_psf.fwhm_arcsec / pixel_scale_arcsec))
    widest = max(len(psf.image) * psf.pixel_scale_arcsec for psf in (hr_psf, lr_psf))
    radius = int(np.ceil(5 * lr_psf.fwhm_arcsec / pixel_scale_arcsec))
    size = 2 * max(int(np.ceil(widest / pixel_scale_arcsec)), radius) + 1
    frequency = frequencies(size, pixel_scale_arcsec)
    sharp = optics_transfer(hr_psf, frequency, hr_native_arcsec, is_resampled(hr_native_arcsec, pixel_scale_arcsec))
    broad = optics_transfer(lr_psf, frequency, lr_native_arcsec, resampled=False)
    kernel = matching_kernel(sharp, broad, radius)
    return Blur(kernel, sampled_psf(sharp, stored), sampled_psf(broad, stored))


def degrade(
    image: np.ndarray,
    real: np.ndarray,
    noise: np.ndarray,
    native_arcsec: float,
    blur: Blur,
    pixel_scale_arcsec: float,
    hr_size: int,
    scale: int,
    noise_factor: float,
    noise_sigma: float | None,
    generator: np.random.Generator,
) -> OnePair:
    """Resample `image` (H,W) to HR pixels about its centre, blur, bin, crop both to `hr_size` and add noise to LR.

    Flux is conserved: an LR pixel is the sum of the blurred HR pixels that it covers. The background noise of LR is
    `noise_sigma`, or `noise_factor` times what HR noise adds up to; what HR noise already gives is counted. The noise
    of neighbouring pixels of a drizzled image is correlated and adds up to more than `noise` says: how far it is
    correlated is measured on the sky of the binned image.
    Sky around the crop is blurred with it where the image has it; beyond, the image is mirrored, and pixels that are
    not real count as empty.
    """
    ratio = pixel_scale_arcsec / native_arcsec
    if not is_resampled(native_arcsec, pixel_scale_arcsec):
        ratio = float(round(ratio))
    wanted = scale * int(np.ceil(len(blur.kernel) / 2 / scale))
    matrices, margins = [], []
    for count in image.shape:
        spare = int((count / ratio - hr_size + 1e-9) // (2 * scale)) * scale
        margin = min(max(spare, 0), wanted)
        outputs = hr_size + 2 * margin
        offset = (count - outputs * ratio) / 2
        matrices.append(
            overlap_matrix(count, outputs, ratio, float(np.floor(offset)) if ratio.is_integer() else offset)
        )
        margins.append(margin)
    rows, columns = matrices
    hr = rebin(image, rows, columns)
    mask = real_pixels(real, rows, columns, ratio)
    hr = np.where(mask, hr, 0)
    variance = rebin(noise**2, rows**2, columns**2)
    background = float(np.median(variance[mask])) if mask.any() else 0.0
    variance = np.where(mask, variance, background)
    length = noise_correlation_length(hr, mask, background, scale, ratio)
    lr = blur_and_bin(hr, blur.kernel, scale)
    block = np.ones((scale, scale))
    inherited = blur_and_bin(variance, blur.kernel, scale, power=2)
    inherited *= correlated_growth(fftconvolve(blur.kernel, block), ratio, length)
    background *= correlated_growth(block, ratio, length)
    crop = tuple(slice(margin, margin + hr_size) for margin in margins)
    small = tuple(slice(margin // scale, (margin + hr_size) // scale) for margin in margins)
    lr, inherited = lr[small], np.clip(inherited[small], 0, None)
    target = noise_sigma if noise_sigma is not None else noise_factor * scale * np.sqrt(background)
    added = np.sqrt(max(target**2 - np.median(inherited), 0))
    lr = lr + added * generator.standard_normal(lr.shape)
    return OnePair(hr[crop], mask[crop], lr, np.sqrt(inherited + added**2))
