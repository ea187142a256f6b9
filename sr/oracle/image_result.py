"""What a fit of one FITS image leaves: fit.json, fit.fits and fit.png in a folder."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from simulate.instruments import NANOJANSKY_ZERO_POINT
from simulate.provenance import package_versions
from simulate.shards import write_atomically, write_json

from ..upsampled_header import upsampled_header
from .examine import Fit, physical_covariance
from .image_file import LensImage
from .parameters import Parameters
from .picture import draw_picture

FRAME = "arcsec from origin_fits_pixel, x along NAXIS1, y along NAXIS2"


def write_result(folder: Path, image: LensImage, parameters: Parameters, fit: Fit, scale: int) -> dict[str, Any]:
    """Write the fit of one image; returns what fit.json holds.

    fit.json: parameters with 1-sigma errors, their covariance, chi^2, and the model as lenstronomy has it. fit.fits:
    the model as the LR instrument sees it (MODEL), data minus model in units of the noise (RESIDUAL), the model at HR
    and its 1-sigma error (HR_MODEL, HR_SIGMA, with their sky coordinates). fit.png: these side by side.
    """
    content = describe(image, parameters, fit)
    hr_inside = tuple(slice(one.start * scale, one.stop * scale) for one in image.inside)
    per_hr_pixel = scale**2 if image.is_surface_brightness else 1
    maps = {
        "MODEL": fit.lr[0].cpu().numpy()[image.inside],
        "RESIDUAL": ((image.flux - fit.lr[0].cpu().numpy()) / image.noise)[image.inside],
        "HR_MODEL": fit.hr[0].cpu().numpy()[hr_inside] * per_hr_pixel,
        "HR_SIGMA": fit.hr_sigma[0].cpu().numpy()[hr_inside] * per_hr_pixel,
    }
    folder.mkdir(parents=True, exist_ok=True)
    headers = {name: image.header.copy() for name in ("MODEL", "RESIDUAL")}
    headers["RESIDUAL"]["BUNIT"] = "sigma"
    headers |= dict.fromkeys(("HR_MODEL", "HR_SIGMA"), upsampled_header(image.header, scale, image.where))
    write_atomically(folder / "fit.fits", lambda path: _write_fits(path, maps, headers))
    data = np.where(np.isfinite(image.noise), image.flux, np.nan)[image.inside]
    write_atomically(folder / "fit.png", lambda path: draw_picture(path, data, maps, content))
    write_json(folder / "fit.json", content)
    return content


def describe(image: LensImage, parameters: Parameters, fit: Fit) -> dict[str, Any]:
    """The numbers of one fit, as plain values."""
    names = list(parameters.names)
    values = {name: float(one) for name, one in parameters.physical(fit.u[0]).items()}
    covariance = physical_covariance(parameters, fit.u, fit.covariance)[0].cpu().numpy()
    slope = np.ones(len(names))
    for place, name in enumerate(names):  # magnitudes are those of numbers in the image's unit: say the numbers
        if name.endswith(".magnitude"):
            slope[place] = -0.4 * math.log(10) * _flux(values[name])
    covariance = slope[:, None] * covariance * slope
    sigmas = dict(zip(names, np.sqrt(covariance.diagonal()).tolist(), strict=True))
    reported = {
        _reported(name): {
            "value": _flux(value) if name.endswith(".magnitude") else value,
            "sigma": sigmas.get(name, 0.0),
            "unit": _unit(name, image.unit),
        }
        for name, value in values.items()
    }
    chi2, degrees = float(fit.chi2[0]), float(fit.degrees_of_freedom[0])
    return {
        "image": image.where,
        "pixel_scale_arcsec": image.pixel_scale_arcsec,
        "notes": list(image.notes),
        "frame": FRAME,
        "origin_fits_pixel": [(len(image.flux) + 1) / 2 - image.inside[axis].start for axis in (1, 0)],
        "accepted": bool(fit.accepted[0]),
        "chi2": chi2,
        "degrees_of_freedom": degrees,
        "chi2_per_degree": chi2 / degrees,
        "parameters": reported,
        "covariance": {"names": [_reported(name) for name in names], "matrix": covariance.tolist()},
        "lenstronomy": _lenstronomy(parameters, fit),
        "versions": package_versions(),
    }


def _lenstronomy(parameters: Parameters, fit: Fit) -> dict[str, Any]:
    slots = parameters.slots(fit.u)
    light = ("amp", "R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")

    def arguments(names: tuple[str, ...], row: torch.Tensor) -> dict[str, float]:
        return dict(zip(names, row[0].tolist(), strict=True))

    power_law = arguments(("theta_E", "gamma", "e1", "e2", "center_x", "center_y"), slots.power_law)
    shear = {**arguments(("gamma1", "gamma2"), slots.shear), "ra_0": 0.0, "dec_0": 0.0}
    models: dict[str, Any] = {"lens_model_list": ["EPL", "SHEAR"], "kwargs_lens": [power_law, shear]}
    models |= {"source_model_list": ["SERSIC_ELLIPSE"], "kwargs_source": [arguments(light, slots.source)]}
    if slots.lens_light is not None:
        own = [arguments(light, slots.lens_light)]
        models |= {"lens_light_model_list": ["SERSIC_ELLIPSE"], "kwargs_lens_light": own}
    return models


def _flux(magnitude: float) -> float:
    return float(10 ** (-0.4 * (magnitude - NANOJANSKY_ZERO_POINT)))


def _reported(name: str) -> str:
    return name.replace(".magnitude", ".flux")


def _unit(name: str, image_unit: str) -> str:
    if name.endswith(".magnitude"):
        return f"{image_unit}, summed over pixels"
    return "arcsec" if name.endswith("_arcsec") else ""


def _write_fits(path: Path, maps: dict[str, np.ndarray], headers: dict[str, fits.Header]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        images = []
        for name, one in maps.items():
            header = headers[name].copy()
            for key in ("EXTNAME", "EXTVER", "XTENSION", "SIMPLE", "CHECKSUM", "DATASUM", "BSCALE", "BZERO", "BLANK"):
                header.remove(key, ignore_missing=True)
            images.append(fits.ImageHDU(one.astype(np.float32), header, name=name))
        with path.open("wb") as handle:
            fits.HDUList([fits.PrimaryHDU(), *images]).writeto(handle, output_verify="silentfix+ignore")
