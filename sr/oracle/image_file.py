"""A FITS image as the fit takes it: square, with its noise, pixel scale and PSF."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from simulate.errors import InputError
from simulate.instruments import PSFSettings, load_instrument
from simulate.psf import PIXEL_SCALE_KEYWORDS

from ..observed.fits_images import pixel_scale_arcsec, read_image
from ..observed.noise import noise_map
from ..super_resolve import _read_maps, _read_plane, fill_nearest
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


@dataclass(frozen=True)
class PsfChoice:
    """The PSF that a user names: a FITS file, a Gaussian's FWHM or an instrument; all None: the image's PSF HDU."""

    file: Path | None = None
    fwhm_arcsec: float | None = None
    instrument: str | None = None
    includes_pixel: bool = True
    """Whether a PSF in a file contains the pixel's response, as one measured on stars does."""


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
    image, header, where = _read_plane(source, hdu)
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
        maps, _ = _read_maps(source, header, image.shape)
        noise, bad, note = noise_map(filled, real, header, maps, where)
        real = real & ~bad
    size = max(image.shape)
    inside = tuple(slice((size - length) // 2, (size - length) // 2 + length) for length in image.shape)
    flux, sigma = np.zeros((size, size)), np.full((size, size), np.inf)
    flux[inside], sigma[inside] = np.where(real, image, 0), np.where(real, noise, np.inf)
    settings, psf_note = _find_psf(psf, source, scale, where)
    return LensImage(flux, sigma, (inside[0], inside[1]), scale, settings, header, where, (note, psf_note))


def _find_psf(choice: PsfChoice, source: Path, pixel_scale: float, where: str) -> tuple[PSFSettings, str]:
    given = [one for one in (choice.file, choice.fwhm_arcsec, choice.instrument) if one is not None]
    if len(given) > 1:
        raise InputError("give one of --psf, --fwhm and --instrument, not several")
    if choice.fwhm_arcsec is not None:
        if not choice.fwhm_arcsec > 0:
            raise InputError(f"--fwhm {choice.fwhm_arcsec:g}: expected a positive number of arcsec")
        return PSFSettings(kind="gaussian", fwhm_arcsec=choice.fwhm_arcsec), f'PSF: Gaussian of {choice.fwhm_arcsec:g}"'
    if choice.instrument is not None:
        instrument = load_instrument(choice.instrument)
        return instrument.psf, f"PSF of {instrument.name}"
    path, hdu = choice.file or source, None if choice.file else "PSF"
    try:
        _, header, psf_where = read_image(path, hdu)
    except InputError as error:
        if choice.file is not None:
            raise
        raise InputError(f"{where}: the PSF is not known ({error}); give --psf, --fwhm or --instrument") from None
    found = [header[key] for key in PIXEL_SCALE_KEYWORDS if isinstance(header.get(key), int | float)]
    settings = PSFSettings(
        kind="fits",
        fits=str(path),
        hdu=hdu,
        fits_pixel_scale_arcsec=found[0] if found else pixel_scale / float(header.get("PSFSUP", 1)),
        includes_pixel_response=choice.includes_pixel,
        pixel_response_arcsec=pixel_scale if choice.includes_pixel else None,
    )
    return settings, f"PSF: {psf_where}"
