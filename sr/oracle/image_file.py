"""A FITS image as the fit takes it: square, with its noise, pixel scale and PSF."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from simulate.errors import InputError
from simulate.instruments import PSFSettings

from ..observed.fits_images import pixel_scale_arcsec
from ..observed.noise import noise_map
from ..psf_choice import PsfChoice, find_psf
from ..super_resolve import fill_nearest, read_maps, read_plane
from ..upsampled_header import is_surface_brightness

LARGEST = 160
"""Pixels along an axis: a lens is to be cut out of its field."""


@dataclass(frozen=True, eq=False)
class LensImage:
    """One image in the middle of a square frame; rows along y."""

    flux: np.ndarray  # (n,n), 0 where there is no pixel
    noise: np.ndarray  # (n,n) 1-sigma, infinite where there is no pixel
    inside: tuple[slice, slice]
    """Where in the frame the file's pixels are."""
    pixel_scale_arcsec: float
    psf: PSFSettings
    header: fits.Header
    where: str
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Of the pixels."""
        return str(self.header.get("BUNIT", "unknown"))

    @property
    def is_surface_brightness(self) -> bool:
        """Whether smaller pixels hold the same number instead of less."""
        return is_surface_brightness(self.header)


def read_lens_image(
    source: Path,
    psf: PsfChoice,
    hdu: str | None = None,
    noise_sigma: float | None = None,
    pixel_scale: float | None = None,
) -> LensImage:
    """Read an image, with its noise as `super-resolve` finds it unless `noise_sigma` is given.

    Raises `InputError` that names file and HDU if the image is too large or small, or if its pixel scale, noise or PSF
    is not known.
    """
    image, header, where = read_plane(source, hdu)
    if not 8 <= min(image.shape) <= max(image.shape) <= LARGEST:
        raise InputError(
            f"{where}: expected a cutout of one lens, 8 to {LARGEST} pixels a side, found {image.shape[1]} x "
            f"{image.shape[0]}; cut the lens out with its middle in the middle"
        )
    scale = pixel_scale if pixel_scale is not None else pixel_scale_arcsec(header, {})
    if scale is None or not (np.isfinite(scale) and scale > 0):
        raise InputError(f"{where}: the pixel scale is not in the header (PIXSCALE or a WCS); give --pixel-scale")
    real = np.isfinite(image)
    filled = fill_nearest(image, real)
    if noise_sigma is not None:
        if not noise_sigma > 0:
            raise InputError(f"--noise {noise_sigma:g}: expected a positive number, the 1-sigma noise of a pixel")
        noise, note = np.full(image.shape, noise_sigma), "noise as given"
    else:
        maps, _ = read_maps(source, header, image.shape)
        noise, bad, note = noise_map(filled, real, header, maps, where)
        real = real & ~bad
    size = max(image.shape)
    inside = tuple(slice((size - length) // 2, (size - length) // 2 + length) for length in image.shape)
    flux, sigma = np.zeros((size, size)), np.full((size, size), np.inf)
    flux[inside], sigma[inside] = np.where(real, image, 0), np.where(real, noise, np.inf)
    settings, psf_note = find_psf(psf, source, scale, where)
    return LensImage(flux, sigma, (inside[0], inside[1]), scale, settings, header, where, (note, psf_note))
