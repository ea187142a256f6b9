"""The kernel that turns one point spread function into another.

All matching is done on transfer functions evaluated directly at the frequencies that are needed, so that a PSF of any
pixel scale, size (odd or even) and sub-pixel centring is used without interpolation.
"""

import numpy as np

from simulate.psf import SIGMA_PER_FWHM, Psf, mend_psf

__all__ = [
    "SIGMA_PER_FWHM",
    "Psf",
    "frequencies",
    "gaussian_psf",
    "matching_kernel",
    "mend_psf",
    "optics_transfer",
    "sampled_psf",
]

REGULARISATION = 1e-4
"""Weight of the Laplacian penalty in the matching kernel: the default of pypher."""


def gaussian_psf(fwhm_arcsec: float) -> Psf:
    """A circular Gaussian of the optics alone (without any pixel response), sampled 6 times per FWHM."""
    axis = np.arange(-24, 25) / 6
    profile = np.exp(-0.5 * (axis / SIGMA_PER_FWHM) ** 2)
    image = np.outer(profile, profile)
    return Psf(image / image.sum(), (24.0, 24.0), fwhm_arcsec / 6, includes_pixel=False)


def optics_transfer(psf: Psf, frequency: np.ndarray, native_arcsec: float, resampled: bool) -> np.ndarray:
    """Transfer function (m,m) of everything but the final pixel, for an image of native pixels `native_arcsec`.

    A pixel of width n multiplies the transfer by sinc(n f) along each axis. A PSF that includes it is divided by it
    once; area-overlap resampling to pixels that are no whole multiple (`resampled`) spreads each native pixel's flux
    over its area and so multiplies by it once more. What is left is completed by the response of the final pixel.
    """
    power = 2 * int(resampled) - int(psf.includes_pixel)
    pixel = np.sinc(native_arcsec * frequency)
    transfer = psf.transfer(frequency, frequency)
    response = np.outer(pixel, pixel)
    divisible = np.abs(response) > 1e-3  # where a pixel sees nothing, its image has nothing to give back
    return np.where(divisible, transfer * np.where(divisible, response, 1.0) ** power, 0)


def frequencies(size: int, pixel_scale_arcsec: float) -> np.ndarray:
    """(size,) frequencies in 1/arcsec, in FFT order, of a grid of `size` pixels."""
    return np.fft.fftfreq(size, pixel_scale_arcsec)


def matching_kernel(sharp: np.ndarray, broad: np.ndarray, radius: int) -> np.ndarray:
    """Kernel (2 radius + 1,)*2 that turns an image with transfer `sharp` (m,m) into one with `broad` (m,m); sums to 1.

    Wiener-regularised ratio with a Laplacian penalty: pypher, Boucaud et al. 2016, A&A 596, A63, eqs. 15-18.
    """
    size = len(sharp)
    axis = 2 - 2 * np.cos(2 * np.pi * np.fft.fftfreq(size))
    laplacian = axis[:, None] + axis[None, :]
    ratio = broad * np.conj(sharp) / (np.abs(sharp) ** 2 + REGULARISATION * laplacian**2)
    return _centred_image(ratio, radius)


def sampled_psf(transfer: np.ndarray, radius: int) -> np.ndarray:
    """A PSF image (2 radius + 1,)*2 for storage from its transfer (m,m): odd, centred, not negative, sums to 1."""
    image = np.clip(_centred_image(transfer, radius), 0, None)
    return image / image.sum()


def _centred_image(transfer: np.ndarray, radius: int) -> np.ndarray:
    image = np.fft.fftshift(np.fft.ifft2(transfer).real)
    middle = len(transfer) // 2
    radius = min(radius, (len(transfer) - 1) // 2)
    image = image[middle - radius : middle + radius + 1, middle - radius : middle + radius + 1]
    return image / image.sum()
