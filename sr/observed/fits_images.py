"""Reading real images from FITS: pixels, noise, PSF, pixel scale and the object's name, whatever form they come in."""

import csv
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from simulate.errors import InputError

from .noise import MAP_NAMES, noise_map
from .psf import Psf, gaussian_psf, mend_psf
from .settings import FitsSettings, PsfSettings

ImageData = tuple[np.ndarray, fits.Header, str]
"""Pixels f8 in native byte order, header, and "file [HDU]" for messages."""
NOT_IMAGES = ("PSF", "ERR", "DQ", "MASK", *MAP_NAMES)


@dataclass(frozen=True, eq=False)
class RealImages:
    """Images of one file that share a PSF and a pixel scale."""

    file: str
    objects: tuple[str, ...]  # (N,)
    images: list[np.ndarray]  # N of (H,W) f8; 0 where not real
    masks: list[np.ndarray]  # N of (H,W) bool, True where real
    noises: list[np.ndarray]  # N of (H,W) f8, 1-sigma
    psf: Psf
    pixel_scale_arcsec: float
    instrument: str
    unit: str
    notes: tuple[str, ...] = field(default=())


def list_files(path: Path, pattern: str) -> list[Path]:
    """The file itself, or the folder's files that match. Raises `InputError` if there are none."""
    if path.is_file():
        return [path]
    files = sorted(path.glob(pattern)) if path.is_dir() else []
    if not files:
        raise InputError(f"{path}: no such FITS file, or a folder without files that match {pattern!r}")
    return files


def read_image(path: Path, hdu: str | int | None = None) -> ImageData:
    """One image of a FITS file: (H,W) or a cube (N,H,W).

    Without `hdu`, `SCI` or else the first image that is no PSF, weight or noise map. Raises `InputError` that names
    file and HDU.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(path, memmap=False) as file:
                names = [one.name or str(number) for number, one in enumerate(file)]
                number = _find_hdu(file, hdu, path, names)
                where = f"{path} [{names[number]}]"
                data, header = file[number].data, file[number].header.copy()
        except (OSError, TypeError, ValueError, EOFError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as FITS: {error}") from None
    if not isinstance(data, np.ndarray) or data.dtype.names or data.ndim not in (2, 3):
        shape = "no pixels" if data is None else f"a table or an array of {np.ndim(data)} axes"
        raise InputError(f"{where}: expected an image (H,W) or a cube (N,H,W), found {shape}; set hdu")
    return data.astype("f8"), header, where


def _find_hdu(file: Any, hdu: str | int | None, path: Path, names: list[str]) -> int:
    if isinstance(hdu, int):
        if hdu < len(file):
            return hdu
    else:
        wanted = [hdu.upper()] if hdu else ["SCI"]
        for number, name in enumerate(names):
            if name.upper() in wanted:
                return number
        if hdu is None:
            for number, one in enumerate(file):
                if one.is_image and one.header.get("NAXIS", 0) >= 2 and names[number].upper() not in NOT_IMAGES:
                    return number
    raise InputError(f"{path}: no HDU {hdu if hdu is not None else 'with an image'!r}; it has {', '.join(names)}")


def read_plane(path: Path, hdu: str | int, plane: int | None) -> ImageData:
    """One (H,W) image; `plane` picks it from a cube."""
    data, header, where = read_image(path, hdu)
    if data.ndim == 2 and plane is None:
        return data, header, where
    if data.ndim == 2 or plane is None or plane >= len(data):
        raise InputError(f"{where}: expected a plane of an array of shape {data.shape}, found plane: {plane}")
    return data[plane], header, where


def read_psf(settings: PsfSettings, own_file: Path | None, image_pixel_scale_arcsec: float | None) -> Psf:
    """The PSF that `settings` describe; `own_file` and the pixel scale are those of the image it belongs to."""
    if settings.fwhm_arcsec is not None:
        return gaussian_psf(settings.fwhm_arcsec)
    path = settings.file or own_file
    if path is None:
        raise InputError("lr_psf: give fwhm_arcsec or file")
    hdu = settings.hdu if settings.hdu is not None or settings.file else "PSF"
    data, header, where = read_image(path, hdu)
    if settings.plane is not None:
        data, header, where = read_plane(path, where[where.rindex("[") + 1 : -1], settings.plane)
    scale = settings.pixel_scale_arcsec or header.get("PIXSCALE")
    if scale is None and image_pixel_scale_arcsec is not None:
        scale = image_pixel_scale_arcsec / float(header.get("PSFSUP", 1))
    if scale is None:
        raise InputError(f"{where}: the PSF's pixel scale is not known; set its pixel_scale_arcsec")
    return mend_psf(data, float(scale), settings.includes_pixel, where)


def read_real_images(path: Path, settings: FitsSettings) -> RealImages:
    """All images of one file: a single one, or the planes of a cube. Raises `InputError` that says what is missing."""
    data, header, where = read_image(path, settings.hdu)
    row = _manifest_row(path)
    scale = settings.pixel_scale_arcsec or pixel_scale_arcsec(header, row)
    if scale is None:
        raise InputError(f"{where}: no pixel scale in PIXSCALE, WCS or manifest.csv; set pixel_scale_arcsec")
    psf = read_psf(settings.psf, path, scale / float(header.get("PSFSUP", 1)))
    planes = data if data.ndim == 3 else data[None]
    if data.ndim == 3 and settings.object_name is None:
        objects = tuple(f"{path.stem}-{number:04d}" for number in range(len(planes)))
    elif data.ndim == 3:
        objects = (settings.object_name or "",) * len(planes)
    else:
        objects = (settings.object_name or row.get("object") or str(header.get("OBJECT", path.stem)),)
    maps = _read_maps(path, planes.shape[1:])
    images, masks, noises, notes = [], [], [], list(psf.notes)
    for number, plane in enumerate(planes):
        real = np.isfinite(plane)
        noise, bad, note = noise_map(np.where(real, plane, 0), real, header, maps, where)
        real &= ~bad
        images.append(np.where(real, plane, 0))
        masks.append(real)
        noises.append(noise)
        notes += [note] if number == 0 else []
    instrument = settings.instrument or row.get("instrument") or _instrument(header)
    unit = settings.unit or str(header.get("BUNIT", "unknown"))
    return RealImages(path.name, objects, images, masks, noises, psf, scale, instrument, unit, tuple(notes))


def _read_maps(path: Path, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The file's weight, noise and exposure maps of the images' shape."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        with fits.open(path, memmap=False) as file:
            return {
                one.name: one.data.astype("f8")
                for one in file
                if one.name in MAP_NAMES and one.data is not None and one.shape == shape
            }


def pixel_scale_arcsec(header: fits.Header, row: dict[str, str]) -> float | None:
    """From PIXSCALE, a celestial WCS or the manifest's row; None if none of them knows it."""
    if "PIXSCALE" in header:
        return float(header["PIXSCALE"])
    wcs = celestial_wcs(header)
    if wcs is not None:
        return round(float(np.mean(proj_plane_pixel_scales(wcs)) * 3600), 9)
    try:
        return float(row.get("pixel_scale_arcsec", ""))
    except ValueError:
        return None


def celestial_wcs(header: fits.Header) -> WCS | None:
    """The header's WCS, or None if it gives no celestial axes or no pixel size."""
    if not any(key in header for key in ("CD1_1", "CDELT1", "PC1_1")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        wcs = WCS(header)
    return wcs.celestial if wcs.has_celestial else None


def _instrument(header: fits.Header) -> str:
    names = [str(header[key]) for key in ("TELESCOP", "INSTRUME") if key in header]
    return "/".join(names) or "unknown"


def _manifest_row(path: Path) -> dict[str, str]:
    for folder in (path.parent, path.parent.parent):
        manifest = folder / "manifest.csv"
        if manifest.is_file():
            with manifest.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if row.get("file") in (path.name, f"{path.parent.name}/{path.name}"):
                        return row
    return {}
