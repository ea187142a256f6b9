"""From surface brightness on the rays to an instrument's pixels: PSF and pixel, each exactly once.

The light on the rays (cells) is convolved there with the PSF, which has no pixel response, and summed to pixels. Light
from outside the frame does not come in, as in lenstronomy. A PSF that is a product of a function of x and one of y (a
Gaussian) takes two products with small matrices, which blur and sum at once; any other takes a Fourier transform.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from ..instruments import PSFSettings, psf_kernel


@lru_cache(maxsize=32)
def _kernel(psf: PSFSettings, spacing_arcsec: float) -> np.ndarray:
    return psf_kernel(psf, spacing_arcsec)


@lru_cache(maxsize=32)
def blur_and_sum(
    psf: PSFSettings, rays: int, spacing_arcsec: float, factor: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """(rays / factor, rays) matrix that blurs along an axis and sums `factor` rays; None if the PSF is no product."""
    kernel = _kernel(psf, spacing_arcsec)
    taps = kernel.sum(0)
    if np.abs(np.outer(kernel.sum(1), taps) - kernel).max() > 1e-14 * kernel.max():
        return None
    half = len(taps) // 2
    distance = np.arange(rays)[:, None] - np.arange(rays)
    blur = np.where(np.abs(distance) <= half, taps[np.clip(distance + half, 0, len(taps) - 1)], 0.0)
    return torch.from_numpy(blur.reshape(rays // factor, factor, rays).sum(1)).to(device, dtype)


def observe(light: Tensor, psf: PSFSettings, spacing_arcsec: float, factor: int) -> Tensor:
    """(B,rays/factor,rays/factor) flux in an instrument's pixels, from the flux (B,rays,rays) of each ray's cell."""
    rays = light.shape[-1]
    matrix = blur_and_sum(psf, rays, spacing_arcsec, factor, light.dtype, light.device)
    if matrix is not None:
        return matrix @ light @ matrix.mT
    padded = padded_size(psf, rays, spacing_arcsec)
    return observe_spectrum(torch.fft.rfft2(light, s=(padded, padded)), psf, rays, spacing_arcsec, factor, light.dtype)


def observe_spectrum(
    spectrum: Tensor, psf: PSFSettings, rays: int, spacing_arcsec: float, factor: int, dtype: torch.dtype
) -> Tensor:
    """As `observe`, from the Fourier transform (B,padded,padded//2+1) of the flux on a grid of `padded_size`."""
    padded = spectrum.shape[-2]
    transfer = transfer_function(psf, rays, spacing_arcsec, padded, dtype, spectrum.device)
    seen = torch.fft.irfft2(spectrum * transfer, s=(padded, padded))
    return bin_sum(seen[:, :rays, :rays], factor)


def padded_size(psf: PSFSettings, rays: int, spacing_arcsec: float) -> int:
    """Size of the periodic grid on which light that the PSF carries over one edge does not come in at the other."""
    half = len(_kernel(psf, spacing_arcsec)) // 2
    return int(next_fast_len(rays + min(half, rays), real=True))


@lru_cache(maxsize=32)
def transfer_function(
    psf: PSFSettings, rays: int, spacing_arcsec: float, padded: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(padded, padded // 2 + 1) Fourier transform of the PSF sampled on the rays."""
    kernel = _kernel(psf, spacing_arcsec)
    half = len(kernel) // 2
    if half >= rays:  # what lies farther out reaches no ray from any other
        kernel = kernel[half - rays + 1 : half + rays, half - rays + 1 : half + rays]
        half = rays - 1
    image = np.zeros((padded, padded))
    image[: len(kernel), : len(kernel)] = kernel
    image = np.roll(image, (-half, -half), (0, 1))
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return torch.from_numpy(np.fft.rfft2(image)).to(device, complex_dtype)


def bin_sum(image: Tensor, factor: int) -> Tensor:
    """Sum blocks of factor x factor: (B,H,W) -> (B,H/factor,W/factor)."""
    if factor == 1:
        return image
    batch, height, width = image.shape
    columns = image.reshape(batch, height, width // factor, factor).sum(3)
    return columns.reshape(batch, height // factor, factor, width // factor).sum(2)


def point_spectrum(x_rays: Tensor, y_rays: Tensor, flux: Tensor, padded: int) -> Tensor:
    """(padded, padded // 2 + 1) Fourier transform of points of light at fractional indices of rays (P,)."""
    wave_y = torch.fft.fftfreq(padded, dtype=x_rays.dtype, device=x_rays.device)
    wave_x = torch.fft.rfftfreq(padded, dtype=x_rays.dtype, device=x_rays.device)
    along = torch.exp(-2j * math.pi * y_rays[:, None] * wave_y)
    across = torch.exp(-2j * math.pi * x_rays[:, None] * wave_x)
    if padded % 2 == 0:  # a real image has real values at the highest frequency
        along[:, padded // 2] = along[:, padded // 2].real.to(along.dtype)
        across[:, -1] = across[:, -1].real.to(across.dtype)
    return (along * flux[:, None]).mT @ across
