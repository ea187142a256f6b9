"""Daily use: one FITS image through a trained model, with its WCS, and a HISTORY of what was done."""

import gzip
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from scipy.ndimage import distance_transform_edt

from simulate.errors import InputError
from simulate.provenance import package_versions
from simulate.shards import file_sha256, write_atomically

from .degradation import knows_degradation
from .domain import objections, observe, remarks
from .given_psf import with_given_psf
from .model_folder import WEIGHTS_NAME, load_model
from .models import find_architecture
from .observed.fits_images import read_image
from .observed.noise import MAP_NAMES, noise_map
from .posterior import PREDICTED_HISTORY, check_draws, sigma_history, sigma_image
from .predicted_variance import predicts_sigma
from .shipped import choose_model, find_model
from .tiles import MARGIN, MINIMUM_TILE, super_resolve_image, super_resolve_image_and_sigma
from .trained_model import TrainedModel
from .upsampled_header import is_surface_brightness, upsampled_header


def super_resolve_fits(
    source: Path,
    target: Path,
    model_name: Path | str | None,
    device: torch.device,
    hdu: str | int | None = None,
    tile_size: int = 128,
    overwrite: bool = False,
    force: bool = False,
    scale: int | None = None,
    self_ensemble: bool = False,
    draws: int | None = None,
    psf: Path | None = None,
    psf_includes_pixel: bool = True,
) -> dict[str, Any]:
    """Super-resolve one 2-D image of `source` and write it to `target`; returns what was done.

    `model_name` is a model's folder or the name of a shipped one; None chooses the shipped one that fits the image (and
    enlarges `scale` times). An image outside of what the model was trained for (pixel scale, instrument, background) is
    refused, unless `force`: then the result's HISTORY says so. `self_ensemble` takes the mean over the 8 symmetries.
    A model with a posterior adds the HDU `SIGMA`, the standard deviation of so many `draws` (None: 16, 0: no HDU), and
    so does a model that predicts its error, without draws (None).

    `psf` is a FITS file with the image's PSF, of the optics and the pixel's response unless `psf_includes_pixel` is not
    set, for models that know the degradation (`with_given_psf`); None: they take the mean PSF of their training data.

    `hdu` is a name or number; without it `SCI`, or else the first image that is no PSF or noise map. Pixels that are
    not finite are filled with the nearest finite one for the network and are NaN again in the result. Flux is
    conserved: an HR pixel holds surface brightness / scale², in the input's BUNIT (a BUNIT per solid angle is
    surface brightness itself and is not divided). Other HDUs are not copied. Raises `InputError` that names file and
    HDU if the image cannot be used, if no model fits, and if `target` exists and `overwrite` is not set.
    """
    if tile_size < MINIMUM_TILE:
        raise InputError(f"tile_size: expected at least {MINIMUM_TILE} LR pixels, found {tile_size}")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; choose another name, or ask to overwrite it")
    if target.resolve() == source.resolve():
        raise InputError(f"{target}: is the input; choose another name for the result")
    image, header, where = read_plane(source, hdu)
    maps, description = read_maps(source, header, image.shape)
    real = np.isfinite(image)
    filled = fill_nearest(image, real)
    # Exact zeros are not sky: mosaics hold them where no exposure was.
    exposed = real & (filled != 0)
    noise, _, noise_source = noise_map(filled, exposed, header, maps, where)
    noise_sigma = float(np.median(noise[real]))

    found = observe(filled, exposed if exposed.any() else real, noise_sigma, header, description)
    chosen = find_model(model_name) if model_name is not None else None
    folder = chosen or choose_model(found, where, scale, with_psf=psf is not None)
    model = load_model(folder, device)
    if scale not in (None, *model.scales) or model.config.channels != 1:
        expected, channels = scale or model.config.scale, model.config.channels
        raise InputError(
            f"{folder}: expected a model of 1 channel that enlarges {expected} times (--scale), "
            f"found {channels} channels and {' or '.join(map(str, model.scales))} times; give another --model"
        )
    model = model.at_scale(scale or min(model.scales))
    if find_architecture(model.config.architecture).whole_images and max(filled.shape) > tile_size:
        raise InputError(
            f"{where}: model {model.name} ({model.config.architecture}) sees one lens in a whole image, expected at "
            f"most {tile_size} pixels a side, found {' x '.join(map(str, filled.shape))}; cut the lens out"
        )
    predicted = draws is None and predicts_sigma(model.network)
    draws = check_draws(model, draws)
    scale = model.config.scale
    sr_header = upsampled_header(header, scale, where)
    reasons = objections(model.config, found)
    if reasons and not force:
        raise InputError(
            f"{where}: not what model {model.name} was trained for: {'; '.join(reasons)}; "
            "give another --model, or --force it and trust no detail"
        )
    psf_source = "PSF: the mean of the training data" if knows_degradation(model.network) else None
    if psf is not None:
        model, psf_source = with_given_psf(model, psf, psf_includes_pixel, found.pixel_scale_arcsec, where)
    flux = filled.astype(np.float32)
    planes = {}
    if predicted:
        both = super_resolve_image_and_sigma(model, flux, noise_sigma, device, tile_size, noise)
        planes = dict(zip(("PRIMARY", "SIGMA"), both, strict=True))
    if not predicted or self_ensemble:
        planes["PRIMARY"] = super_resolve_image(model, flux, noise_sigma, device, tile_size, self_ensemble, noise)
    if draws:
        planes["SIGMA"] = sigma_image(model, flux, noise_sigma, device, tile_size, draws, noise=noise)
    for plane in planes.values():
        if is_surface_brightness(header):
            plane *= scale**2
        plane[np.kron(~real, np.ones((scale, scale), bool))] = np.nan

    done = {
        "source": where,
        "target": str(target),
        "input_shape": image.shape,
        "output_shape": planes["PRIMARY"].shape,
        "scale": scale,
        "model": str(folder),
        "noise_sigma": noise_sigma,
        "noise_source": noise_source,
        "psf_source": psf_source,
        "pixels_not_finite": int((~real).sum()),
        "draws": draws,
        "predicted_sigma": predicted,
        "notes": [f"forced: {reason}" for reason in reasons] + remarks(model.config, found),
    }
    for line in _history(model, folder, done, header, tile_size, self_ensemble):
        for card in textwrap.wrap(line.encode("ascii", "replace").decode(), width=72):
            sr_header.add_history(card)
    write_atomically(target, lambda path: _write(path, planes, sr_header, compress=target.suffix == ".gz"))
    return done


def fill_nearest(image: np.ndarray, real: np.ndarray) -> np.ndarray:
    """`image` (h,w) with every pixel that is not `real` set to the nearest one that is."""
    if real.all():
        return image
    nearest = distance_transform_edt(~real, return_distances=False, return_indices=True)
    return image[tuple(nearest)]


def read_plane(source: Path, hdu: str | int | None) -> tuple[np.ndarray, fits.Header, str]:
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


def read_maps(source: Path, header: fits.Header, shape: tuple[int, ...]) -> tuple[dict[str, np.ndarray], fits.Header]:
    """The noise and weight maps that belong to the image: RMS to SCI or PRIMARY, VIS_RMS to VIS_FLUX.

    Also completes `header` with the primary one's keywords where it asks for them (INHERIT), and returns one that has
    them in any case: JWST writes there alone what telescope it is.
    """
    prefix, version = str(header.get("EXTNAME", "")).upper().rpartition("_")[0], header.get("EXTVER", 1)
    maps = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(source, memmap=False) as file:
                if header.get("INHERIT") is True:
                    header.extend(file[0].header, unique=True)
                description = header.copy()
                description.extend(file[0].header, unique=True)
                for one in file:
                    before, _, name = one.name.rpartition("_")
                    belongs = one.is_image and name in MAP_NAMES and (before, one.ver) == (prefix, version)
                    if belongs and one.shape == shape:
                        maps[name] = one.data.astype("f8")
        except (OSError, TypeError, ValueError, EOFError) as error:
            raise InputError(f"{source}: its noise or weight map cannot be read: {error}") from None
    return maps, description


def _history(
    model: TrainedModel,
    model_folder: Path,
    done: dict[str, Any],
    header: fits.Header,
    tile_size: int,
    self_ensemble: bool,
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
        *([done["psf_source"]] if done["psf_source"] else []),
        f"{done['pixels_not_finite']} input pixels not finite: filled from the nearest for the network, NaN here",
        f"tiles of {tile_size} input pixels, margin {MARGIN}",
        *(["mean over the 8 symmetries of the square (self-ensemble)"] if self_ensemble else []),
        *([sigma_history(done["draws"])] if done["draws"] else []),
        *([PREDICTED_HISTORY] if done["predicted_sigma"] else []),
        "WCS, SIP, LTV/LTM and pixel sizes scaled; detector sections and noise keywords are the input's",
        *(f"note: {note}" for note in done["notes"]),
    ]


def _write(path: Path, planes: dict[str, np.ndarray], header: fits.Header, compress: bool) -> None:
    """The first of `planes` as the primary HDU, the others as extensions of their names; all have the header."""
    first, *others = planes
    hdus = [fits.PrimaryHDU(planes[first], header), *(fits.ImageHDU(planes[one], header, name=one) for one in others)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        with gzip.open(path, "wb") if compress else path.open("wb") as handle:
            fits.HDUList(hdus).writeto(handle, output_verify="silentfix+ignore")
