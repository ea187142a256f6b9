"""The FITS header of an image whose pixels were each divided into scale x scale: WCS and what else counts in pixels."""

import re
from string import ascii_uppercase

from astropy import units
from astropy.io import fits

from simulate.errors import InputError

STALE = ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM", "DATAMIN", "DATAMAX", "INHERIT")
PIXEL_SIZES = {"PIXSCALE": 1, "SECPIX": 1, "PIXAR_A2": 2, "PIXAR_SR": 2}
"""Keywords of a pixel's length (1) or area (2)."""
LOOKUP_DISTORTION = re.compile(r"(CPDIS|CQDIS|D2IMDIS)\d[A-Z]?")
SIP_COEFFICIENT = re.compile(r"(?:A|B|AP|BP)_(\d)_(\d)")


def upsampled_header(header: fits.Header, scale: int, where: str) -> fits.Header:
    """A copy of `header` for the upsampled image; keywords that no longer hold are left out.

    In FITS the first pixel's centre is 1 and its edge 0.5, so x becomes (x - 0.5) * scale + 0.5. Raises `InputError`
    if the WCS depends on a table in another HDU.
    """
    result = header.copy()
    for key in STALE:
        result.remove(key, ignore_missing=True)
    _refuse_lookup_tables(result, where)
    for alternate in ("", *ascii_uppercase):
        _scale_linear_wcs(result, scale, alternate)
    _scale_sip(result, scale)
    _scale_detector_frame(result, scale)
    for key, power in PIXEL_SIZES.items():
        if isinstance(result.get(key), int | float):
            result[key] = result[key] / scale**power
    return result


def is_surface_brightness(header: fits.Header) -> bool:
    """Whether BUNIT is a flux per solid angle or beam (as JWST's MJy/sr), which smaller pixels do not divide."""
    try:
        unit = units.Unit(str(header.get("BUNIT", ""))).decompose()
    except (ValueError, TypeError):
        return False
    areas = (units.rad, units.beam)
    return any(base in areas and power < 0 for base, power in zip(unit.bases, unit.powers, strict=True))


def _refuse_lookup_tables(header: fits.Header, where: str) -> None:
    for key in header:
        if LOOKUP_DISTORTION.fullmatch(key):
            raise InputError(
                f"{where}: its WCS has a distortion table ({key}) in another HDU, which cannot be carried over; "
                "resample the image to a plain WCS first (drizzle, reproject)"
            )
    for key in ("CTYPE1", "CTYPE2"):
        if str(header.get(key, "")).rstrip().endswith("-TAB"):
            raise InputError(f"{where}: its WCS ({key}) is a table in another HDU, which cannot be carried over")


def _scale_linear_wcs(header: fits.Header, scale: int, alternate: str) -> None:
    keys = [f"{name}{axis}{alternate}" for name in ("CRPIX", "CRVAL", "CTYPE", "CDELT") for axis in (1, 2)]
    matrix = [f"CD{world}_{pixel}{alternate}" for world in (1, 2, 3) for pixel in (1, 2)]
    if not any(key in header for key in keys + matrix):
        return
    for axis in (1, 2):
        key = f"CRPIX{axis}{alternate}"
        header[key] = (header.get(key, 0.0) - 0.5) * scale + 0.5
    for key in matrix:
        if key in header:
            header[key] /= scale
    for axis in (1, 2):  # the PC matrix and CROTA have no unit: their pixel size is in CDELT, 1 if it is not there
        key = f"CDELT{axis}{alternate}"
        if key in header or not any(one in header for one in matrix):
            header[key] = header.get(key, 1.0) / scale


def _scale_sip(header: fits.Header, scale: int) -> None:
    """SIP polynomials (Shupe et al. 2005) map pixels from CRPIX to pixels: u' = scale*u, f'(u', v') = scale*f(u, v)."""
    for key in list(header):
        term = SIP_COEFFICIENT.fullmatch(key)
        if term:
            header[key] *= float(scale) ** (1 - int(term[1]) - int(term[2]))
    for key in ("A_DMAX", "B_DMAX"):
        if key in header:
            header[key] *= scale


def _scale_detector_frame(header: fits.Header, scale: int) -> None:
    """IRAF's image = LTM * detector + LTV."""
    for axis in (1, 2):
        offset, factor = f"LTV{axis}", f"LTM{axis}_{axis}"
        if offset in header or factor in header:
            header[offset] = (header.get(offset, 0.0) - 0.5) * scale + 0.5
            header[factor] = header.get(factor, 1.0) * scale
