"""Daily use: one FITS image through a trained model, with its WCS, and a HISTORY of what was done."""

import gzip
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.stats import sigma_clipped_stats
from astropy.utils.exceptions import AstropyWarning
from scipy.ndimage import distance_transform_edt

from simulate.errors import InputError
from simulate.provenance import package_versions
from simulate.shards import file_sha256, write_atomically

from .observed.fits_images import pixel_scale_arcsec, read_image
from .observed.noise import MAP_NAMES, noise_map
from .tiles import MARGIN, MINIMUM_TILE, super_resolve_image
from .trained_model import WEIGHTS_NAME, TrainedModel, load_model
from .upsampled_header import is_surface_brightness, upsampled_header


def super_resolve_fits(
    source: Path,
    target: Path,
    model_folder: Path,
    device: torch.device,
    hdu: str | int | None = None,
    tile_size: int = 128,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Super-resolve one 2-D image of `source` and write it to `target`; returns what was done.

    `hdu` is a name or number; without it `SCI`, or else the first image that is no PSF or noise map. Pixels that are
    not finite are filled with the nearest finite one for the network and are NaN again in the result. Flux is
    conserved: an HR pixel holds surface brightness / scale², in the input's BUNIT (a BUNIT per solid angle is
    surface brightness itself and is not divided). Other HDUs are not copied. Raises `InputError` that names file and
    HDU if the image cannot be used, and if `target` exists and `overwrite` is not set.
    """
    if tile_size < MINIMUM_TILE:
        raise InputError(f"tile_size: expected at least {MINIMUM_TILE} LR pixels, found {tile_size}")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; choose another name, or ask to overwrite it")
    if target.resolve() == source.resolve():
        raise InputError(f"{target}: is the input; choose another name for the result")
    image, header, where = _read_plane(source, hdu)
    maps = _read_maps(source, header, image.shape)
    model = load_model(model_folder, device)
    if model.config.channels != 1:
        raise InputError(f"{model_folder}: the model has {model.config.channels} channels, expected 1")
    scale = model.config.scale
    sr_header = upsampled_header(header, scale, where)

    real = np.isfinite(image)
    filled = fill_nearest(image, real)
    # Exact zeros are not sky: mosaics hold them where no exposure was.
    noise, _, noise_source = noise_map(filled, real & (filled != 0), header, maps, where)
    noise_sigma = float(np.median(noise[real]))
    result = super_resolve_image(model, filled.astype(np.float32), noise_sigma, device, tile_size)
    if is_surface_brightness(header):
        result *= scale**2
    result[np.kron(~real, np.ones((scale, scale), bool))] = np.nan

    done = {
        "source": where,
        "target": str(target),
        "input_shape": image.shape,
        "output_shape": result.shape,
        "scale": scale,
        "noise_sigma": noise_sigma,
        "noise_source": noise_source,
        "pixels_not_finite": int((~real).sum()),
        "notes": _notes(model, header, filled[real], noise_sigma),
    }
    for line in _history(model, model_folder, done, header, tile_size):
        for card in textwrap.wrap(line.encode("ascii", "replace").decode(), width=72):
            sr_header.add_history(card)
    write_atomically(target, lambda path: _write(path, result, sr_header, compress=target.suffix == ".gz"))
    return done


def fill_nearest(image: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`image` (h,w) with every pixel that is not `real` set to the nearest one that is."""
    if real.all():
        return image
    nearest = distance_transform_edt(~real, return_distances=False, return_indices=True)
    return image[tuple(nearest)]


def _read_plane(source: Path, hdu: str | int | None) -> tuple[np.ndarray, fits.Header, str]:
    if isinstance(hdu, str) and hdu.isdigit():
        hdu = int(hdu)
    image, header, where = read_image(source, hdu)
    if image.ndim != 2:
        raise InputError(f"{where}: expected a 2-D image, found an array of shape {image.shape}; choose another hdu")
    with np.errstate(over="ignore"):
        image = np.where(np.isfinite(image.astype(np.float32)), image, np.nan)
    if not np.isfinite(image).any():
        raise InputError(f"{where}: no pixel of this {image.shape[0]} x {image.shape[1]} image is finite")
    return image, header, where


def _read_maps(source: Path, header: fits.Header, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The noise and weight maps that belong to the image: RMS to SCI or PRIMARY, VIS_RMS to VIS_FLUX.

    Also completes `header` with the primary one's keywords where it asks for them (INHERIT).
    """
    prefix, version = str(header.get("EXTNAME", "")).upper().rpartition("_")[0], header.get("EXTVER", 1)
    maps = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(source, memmap=False) as file:
                if header.get("INHERIT") is True:
                    header.extend(file[0].header, unique=True)
                for one in file:
                    before, _, name = one.name.rpartition("_")
                    belongs = one.is_image and name in MAP_NAMES and (before, one.ver) == (prefix, version)
                    if belongs and one.shape == shape:
                        maps[name] = one.data.astype("f8")
        except (OSError, TypeError, ValueError, EOFError) as error:
            raise InputError(f"{source}: its noise or weight map cannot be read: {error}") from None
    return maps


def _notes(model: TrainedModel, header: fits.Header, values: np.ndarray, noise_sigma: float) -> list[str]:
    """What the user should know before trusting the result."""
    notes = []
    expected, found = model.config.lr_pixel_scale_arcsec, pixel_scale_arcsec(header, {})
    if found is None:
        notes.append(f'the pixel scale is not in the header; the model expects {expected:.4g}"')
    elif abs(found / expected - 1) > 0.05:
        notes.append(f'the pixels are {found:.4g}", the model was trained on {expected:.4g}": do not trust details')
    background = float(sigma_clipped_stats(values)[1])
    if abs(background) > 5 * noise_sigma:
        sigmas = background / noise_sigma
        notes.append(f"the background is {background:.4g} ({sigmas:.3g} sigma); if it is sky, subtract it first")
    return notes


def _history(
    model: TrainedModel, model_folder: Path, done: dict[str, Any], header: fits.Header, tile_size: int
) -> list[str]:
    config, scale = model.config, done["scale"]
    division = "surface brightness" if is_surface_brightness(header) else f"flux per pixel, sums over {scale}x{scale}"
    return [
        f"sharplens {package_versions()['sharplens']} super-resolve x{scale} of {Path(done['source']).name}",
        f"model {model.name} ({config.architecture}), {config.lr_instrument} to {config.hr_instrument}",
        f"weights SHA-256 {file_sha256(model_folder / WEIGHTS_NAME)}",
        f"training data SHA-256 {config.data_sha256 or 'none (interpolation)'}",
        f"pixel values: {division}; unit {header.get('BUNIT', 'not given')} as in the input",
        f"{done['noise_source']}: median 1 sigma {done['noise_sigma']:.6g} per input pixel",
        f"{done['pixels_not_finite']} input pixels not finite: filled from the nearest for the network, NaN here",
        f"tiles of {tile_size} input pixels, margin {MARGIN}",
        "WCS, SIP, LTV/LTM and pixel sizes scaled; detector sections and noise keywords are the input's",
        *(f"note: {note}" for note in done["notes"]),
    ]


def _write(path: Path, image: np.ndarray, header: fits.Header, compress: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        with gzip.open(path, "wb") if compress else path.open("wb") as handle:
            fits.PrimaryHDU(image, header).writeto(handle, output_verify="silentfix+ignore")
