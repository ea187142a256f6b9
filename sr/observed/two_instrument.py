"""True pairs: one patch of sky that two instruments observed, registered and cut into tiles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.fits import Header

from simulate.errors import InputError

from .degrade import Blur, OnePair, make_blur
from .fits_images import celestial_wcs, pixel_scale_arcsec, read_plane, read_psf
from .noise import mend_noise
from .psf import Psf
from .registration import Registered, concentric_corner, corner_from_wcs, measure_shift, register
from .settings import InstrumentSettings, TwoInstrumentSettings


@dataclass(frozen=True, eq=False)
class Side:
    """What one instrument saw: pixels (H,W) f8 with `real` (H,W) and, if there is a map, 1-sigma `noise` (H,W)."""

    image: np.ndarray
    real: np.ndarray
    noise: np.ndarray | None
    header: Header
    psf: Psf
    pixel_scale_arcsec: float


@dataclass(frozen=True, eq=False)
class ObservedField:
    """The tiles of one field, the PSFs on their HR grid, and what was measured on the way."""

    tiles: list[OnePair]
    blur: Blur
    hr_pixel_scale_arcsec: float
    unit: str
    numbers: dict[str, Any]
    left_out: list[str]


def read_field(path: Path, settings: TwoInstrumentSettings, hr_size: int, scale: int) -> ObservedField:
    """Read, register and cut one file. Raises `InputError` if it cannot be read or registered."""
    hr, lr = (_read_side(path, one) for one in (settings.hr, settings.lr))
    native_ratio, block = lr.pixel_scale_arcsec / hr.pixel_scale_arcsec, settings.lr.block
    pixel = lr.pixel_scale_arcsec * block / scale
    if pixel < hr.pixel_scale_arcsec * 0.999:
        raise InputError(
            f"{path}: scale {scale} asks for HR pixels of {pixel:.3f} arcsec, finer than the "
            f"{hr.pixel_scale_arcsec:.3f} arcsec that were observed; choose a smaller scale or larger LR blocks"
        )
    hr_fwhm, lr_fwhm = hr.psf.fwhm_arcsec, lr.psf.fwhm_arcsec
    if hr_fwhm >= lr_fwhm:
        raise InputError(f"{path}: HR's PSF (FWHM {hr_fwhm:.3f} arcsec) is not sharper than LR's ({lr_fwhm:.3f})")
    wcs = celestial_wcs(hr.header), celestial_wcs(lr.header)
    if wcs[0] is not None and wcs[1] is not None:
        corner = corner_from_wcs(wcs[0], wcs[1], native_ratio, lr.image.shape, str(path))
    else:
        corner = concentric_corner(hr.image.shape, lr.image.shape, native_ratio)
    blur = make_blur(hr.psf, hr.pixel_scale_arcsec, lr.psf, lr.pixel_scale_arcsec, pixel)
    image, noise, real = _sum_blocks(lr, block)
    try:
        found = register(hr.image, hr.real, image, real, native_ratio * block, corner, blur.kernel, scale)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    moved = float(np.hypot(*found.shift_lr_pixels))
    if moved > settings.shift_limit_lr_pixels:
        raise InputError(
            f"{path}: lies {moved:.2f} LR pixels from where its headers say, more than shift_limit_lr_pixels "
            f"({settings.shift_limit_lr_pixels})"
        )
    image = np.where(real, image - found.sky, 0)
    noise, scaling = _scale_noise(image, noise, found)
    tiles, offsets, left_out = _cut(image, noise, found, settings, hr_size, scale)
    numbers = {
        "hr_psf_fwhm_arcsec": hr_fwhm,
        "lr_psf_fwhm_arcsec": lr_fwhm,
        "shift_from": "concentric frames" if None in wcs else "WCS",
        "shift_lr_pixels": found.shift_lr_pixels,
        "gain": found.gain,
        "lr_sky": found.sky,
        "lr_noise_scaling": scaling,
        "tile_offsets_lr_pixels": offsets,
        "notes": [*hr.psf.notes, *lr.psf.notes],
    }
    unit = settings.unit or str(lr.header.get("BUNIT", "unknown"))
    return ObservedField(tiles, blur, pixel, unit, numbers, left_out)


def _read_side(path: Path, settings: InstrumentSettings) -> Side:
    data, header, where = read_plane(path, settings.hdu, settings.plane)
    scale = settings.pixel_scale_arcsec or pixel_scale_arcsec(header, {})
    if scale is None:
        raise InputError(f"{where}: no pixel scale in PIXSCALE or WCS; set pixel_scale_arcsec")
    real, noise = np.isfinite(data), None
    if settings.noise_hdu is not None:
        sigma, _, noise_where = read_plane(path, settings.noise_hdu, None)
        if sigma.shape != data.shape:
            raise InputError(f"{noise_where}: expected the image's shape {data.shape}, found {sigma.shape}")
        noise, bad = mend_noise(sigma, noise_where)
        real &= ~bad
    return Side(np.where(real, data, 0), real, noise, header, read_psf(settings.psf, path, scale), scale)


def _sum_blocks(side: Side, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, noise (1 if not known) and realness of blocks of pixels; a remainder at the far edges is dropped."""
    height, width = (count // block for count in side.image.shape)
    variance = np.ones(side.image.shape) if side.noise is None else side.noise**2

    def blocks(values: np.ndarray) -> np.ndarray:
        return values[: height * block, : width * block].reshape(height, block, width, block)

    real = np.asarray(blocks(side.real).all((1, 3)))
    return blocks(side.image).sum((1, 3)), np.sqrt(blocks(variance).sum((1, 3))), real


def _scale_noise(image: np.ndarray, noise: np.ndarray, found: Registered) -> tuple[np.ndarray, float]:
    """The noise, scaled to the scatter of LR about its prediction, and by how much.

    Maps of resampled bands are silent about how the noise of one pixel is correlated with the next, so that blocks of
    pixels scatter otherwise than they say. The median absolute deviation is set by the sky, not by the objects.
    """
    deviation = ((image - found.prediction) / noise)[found.real]
    scaling = float(1.4826 * np.median(np.abs(deviation - np.median(deviation))))
    return noise * scaling, scaling


def _cut(
    image: np.ndarray, noise: np.ndarray, found: Registered, settings: TwoInstrumentSettings, hr_size: int, scale: int
) -> tuple[list[OnePair], list[float], list[str]]:
    """Tiles that do not overlap, centred on the part both saw; those that do not match are left out, with a reason."""
    size = hr_size // scale
    inside = [np.flatnonzero(found.real.any(axis=axis)) for axis in (1, 0)]
    starts = []
    for places in inside:
        first, count = int(places[0]), int(places[-1] - places[0] + 1)
        tiles = count // size
        starts.append([first + (count - tiles * size) // 2 + number * size for number in range(tiles)])
    pairs, offsets, left_out = [], [], []
    for y in starts[0]:
        for x in starts[1]:
            low = np.s_[y : y + size, x : x + size]
            high = np.s_[y * scale : y * scale + hr_size, x * scale : x * scale + hr_size]
            real, prediction = found.real[low], found.prediction[low]
            problem, offset = _check_tile(prediction, image[low], real, settings)
            if problem:
                left_out.append(f"tile at LR pixel ({y}, {x}): {problem}")
                continue
            mask = found.hr_real[high] & np.kron(real, np.ones((scale, scale), bool))
            pairs.append(OnePair(np.where(mask, found.hr[high], 0), mask, image[low], noise[low]))
            offsets.append(offset)
    if not starts[0] or not starts[1]:
        left_out.append(f"the part both instruments saw is smaller than a tile of {size} LR pixels")
    return pairs, offsets, left_out


def _check_tile(
    prediction: np.ndarray, observed: np.ndarray, real: np.ndarray, settings: TwoInstrumentSettings
) -> tuple[str, float]:
    """Why the tile is no good pair ("" if it is), and its offset in LR pixels."""
    if real.mean() < 0.8:
        return f"only {real.mean():.0%} of its pixels are real", 0.0
    correlation = float(np.corrcoef(prediction[real], observed[real])[0, 1])
    if correlation < settings.lowest_correlation:
        return f"correlation {correlation:.2f} is below lowest_correlation ({settings.lowest_correlation})", 0.0
    offset = float(np.hypot(*measure_shift(prediction, observed, real)))
    if offset > settings.offset_limit_lr_pixels:
        limit = settings.offset_limit_lr_pixels
        return f"misregistered by {offset:.2f} LR pixels, more than offset_limit_lr_pixels ({limit})", offset
    return "", offset
