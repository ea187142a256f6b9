"""Point spread functions as data: mending, measuring, and the kernel that turns one into another.

All matching is done on transfer functions evaluated directly at the frequencies that are needed, so that a PSF of any
pixel scale, size (odd or even) and sub-pixel centring is used without interpolation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import zoom

from simulate.errors import InputError

SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
REGULARISATION = 1e-4
"""Weight of the Laplacian penalty in the matching kernel: the default of pypher."""


@dataclass(frozen=True, eq=False)
class Psf:
    """A sampled PSF. `image` (k,k) f8 sums to 1 and is not negative; `centre` (y, x) is its centroid in pixels."""

    image: np.ndarray
    centre: tuple[float, float]
    pixel_scale_arcsec: float
    includes_pixel: bool
    """True if the response of the image's own pixel is part of it, as in a PSF measured on stars."""
    notes: tuple[str, ...] = ()

    @property
    def fwhm_arcsec(self) -> float:
        """Diameter of the circle with the area above half of the peak (5 times finer by cubic interpolation)."""
        fine = zoom(self.image, 5, order=3, mode="grid-constant", grid_mode=True)
        area = np.count_nonzero(fine >= 0.5 * fine.max()) * (self.pixel_scale_arcsec / 5) ** 2
        return float(2 * np.sqrt(area / np.pi))

    def transfer(self, frequency_y: np.ndarray, frequency_x: np.ndarray) -> np.ndarray:
        """Fourier transform about the centre at `frequency_y` (m,), `frequency_x` (n,) in 1/arcsec: (m,n) complex.

        If frequencies beyond the Nyquist frequency of the PSF's own sampling are asked for, the PSF is taken as the
        cubic spline through its pixels: a sharp end of the transfer would ring around every star.
        """
        rows = self._waves(frequency_y, 0)
        columns = self._waves(frequency_x, 1)
        return rows @ self.image @ columns.T

    def _waves(self, frequency: np.ndarray, axis: int) -> np.ndarray:
        position = (np.arange(self.image.shape[axis]) - self.centre[axis]) * self.pixel_scale_arcsec
        waves = np.exp(-2j * np.pi * np.outer(frequency, position))
        cycles = frequency * self.pixel_scale_arcsec  # per pixel of the PSF
        if np.abs(cycles).max() <= 0.5 * (1 + 1e-3):
            return waves
        # Unser 1999, IEEE Signal Processing Magazine 16, 22: Fourier transform of the cardinal cubic spline
        spline = 3 * np.sinc(cycles) ** 4 / (2 + np.cos(2 * np.pi * cycles))
        return waves * spline[:, None]


def gaussian_psf(fwhm_arcsec: float) -> Psf:
    """A circular Gaussian of the optics alone (without any pixel response), sampled 6 times per FWHM."""
    axis = np.arange(-24, 25) / 6
    profile = np.exp(-0.5 * (axis / SIGMA_PER_FWHM) ** 2)
    image = np.outer(profile, profile)
    return Psf(image / image.sum(), (24.0, 24.0), fwhm_arcsec / 6, includes_pixel=False)


def mend_psf(image: ArrayLike, pixel_scale_arcsec: float, includes_pixel: bool, where: str) -> Psf:
    """Normalise and centre a PSF image (k,l) or the average of a cube (n,k,l) of them; odd or even, any byte order.

    What was mended is in `notes`. Raises `InputError` that names `where` (file and HDU) if there is no PSF to save.
    """
    planes = np.asarray(image, "f8")
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or min(planes.shape[1:]) < 3:
        raise InputError(f"{where}: expected a PSF image (k,k) or a cube of them, found shape {np.shape(image)}")
    notes = []
    bad = np.count_nonzero(~np.isfinite(planes))
    if bad:
        notes.append(f"{bad} pixels that are not finite set to 0")
        planes = np.where(np.isfinite(planes), planes, 0)
    if len(planes) > 1:
        sound = [plane for plane in planes if plane.min() > -0.02 * plane.max()]
        if not sound:
            raise InputError(f"{where}: every one of the {len(planes)} PSFs has strongly negative pixels")
        notes.append(f"average of {len(sound)} of {len(planes)} PSFs (others have strongly negative pixels)")
        planes = np.array([plane / plane.sum() for plane in sound])
    psf = planes.mean(0)
    total = psf.sum()
    negative = -psf[psf < 0].sum()
    if total <= 0 or negative > 0.1 * total:
        raise InputError(
            f"{where}: not a PSF: its pixels sum to {total:.4g}, of which {-negative:.4g} is negative; "
            "expected a star-like image with a positive sum"
        )
    if negative > 1e-3 * total:
        notes.append(f"negative pixels ({negative / total:.2%} of the flux) set to 0")
    if abs(total - 1) > 0.01:
        notes.append(f"normalised (the sum was {total:.4g})")
    psf = np.clip(psf, 0, None)
    psf /= psf.sum()
    centre = _windowed_centroid(psf)
    offset = np.hypot(*(np.array(centre) - (np.array(psf.shape) - 1) / 2))
    if offset > 0.1:
        notes.append(f"re-centred by {offset:.2f} of its pixels")
    return Psf(psf, centre, pixel_scale_arcsec, includes_pixel, tuple(notes))


def _windowed_centroid(image: np.ndarray) -> tuple[float, float]:
    """Centroid within a Gaussian window that follows it (as in SExtractor's XWIN_IMAGE); wings cut off do not pull."""
    y, x = np.indices(image.shape)
    cy, cx = (float(place) for place in np.unravel_index(int(image.argmax()), image.shape))
    width = np.sqrt(np.count_nonzero(image >= 0.5 * image.max()) / np.pi) + 0.5
    for _ in range(50):
        weight = image * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
        step_y, step_x = (2 * float((weight * (axis - c)).sum() / weight.sum()) for axis, c in ((y, cy), (x, cx)))
        cy, cx = cy + step_y, cx + step_x
        if abs(step_y) + abs(step_x) < 1e-8:
            break
    return cy, cx


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
