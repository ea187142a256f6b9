"""The PSF of an image, as a user names it: a FITS file, a Gaussian or an instrument."""

from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits

from simulate.errors import InputError
from simulate.instruments import PSFSettings, load_instrument
from simulate.psf import PIXEL_SCALE_KEYWORDS

from .observed.fits_images import read_image


@dataclass(frozen=True)
class PsfChoice:
    """The PSF that a user names: a FITS file, a Gaussian's FWHM or an instrument; all None: the image's PSF HDU."""

    file: Path | None = None
    fwhm_arcsec: float | None = None
    instrument: str | None = None
    includes_pixel: bool = True
    """Whether a PSF in a file contains the pixel's response, as one measured on stars does."""


def find_psf(choice: PsfChoice, source: Path, pixel_scale: float, where: str) -> tuple[PSFSettings, str]:
    """The PSF that is chosen for the image `where` in the file `source`, and a note on where it is from.

    A file has it in the HDU `PSF`, or else, if it is not the image's own, as its only image. Raises `InputError`.
    """
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
    path = choice.file or source
    hdu: str | None = "PSF"
    try:
        _, header, psf_where = read_image(path, hdu)
    except InputError as error:
        if choice.file is None:
            raise InputError(f"{where}: the PSF is not known ({error}); give --psf, --fwhm or --instrument") from None
        hdu = None
        _, header, psf_where = read_image(path, hdu)
        with fits.open(path) as file:
            images = [one.name or "PRIMARY" for one in file if one.is_image and one.header["NAXIS"] > 0]
        if len(images) > 1:
            raise InputError(
                f"--psf {path}: expected an HDU called PSF, or one image alone, found {', '.join(images)}; save the "
                "PSF in a file of its own"
            ) from None
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
