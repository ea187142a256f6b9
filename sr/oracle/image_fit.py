"""`pipeline fit`: a FITS image of a lens in; parameters with covariance, model images and a picture out."""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from simulate.deflectors import MacroSettings
from simulate.errors import InputError
from simulate.instruments import PSFSettings, load_instrument
from simulate.settings import Settings, apply_overrides, parse_settings, read_yaml
from simulate.sources import SersicSettings

from ..psf_choice import PsfChoice
from .default_priors import default_light, default_macro
from .examine import Fit
from .fit import FitSettings, Fitter
from .image_file import LensImage, read_lens_image
from .image_result import write_result
from .imaging import Optics
from .objective import Images
from .parameters import Parameters, make_parameters

SUPERSAMPLING = 3
"""Rays along an axis of an HR pixel."""
HR_FWHM_PIXELS = 2.0
"""Of the PSF through which the HR model is seen, in HR pixels: the sharpest that they sample well."""


class ImageFitSettings(Settings):
    """The file that `pipeline fit --config` reads. Places are from the middle of the image, along its pixel axes."""

    macro: MacroSettings | None = None
    """None: `default_macro`, as wide as the image allows."""
    source: SersicSettings | None = None
    """None: `default_light`. Magnitudes are those of fluxes in the image's own unit: 31.4 - 2.5 log10(flux)."""
    lens_light: SersicSettings | None = None
    dark_lens: bool = False
    """The lens's light was subtracted, or is not seen."""
    scale: int = Field(2, ge=1, le=8)
    """HR pixels an LR pixel, along an axis."""
    fit: FitSettings = FitSettings(draws=2048, starts=4)


def load_settings(config: Path | None, overrides: list[str]) -> ImageFitSettings:
    """From a YAML file and `section.key=value`. Raises `InputError`."""
    content = apply_overrides(read_yaml(config) if config is not None else {}, overrides)
    return parse_settings(ImageFitSettings, content, str(config or "--set"))


def fit_image(
    image: LensImage,
    settings: ImageFitSettings,
    hr_psf: PSFSettings | None,
    seed: int,
    device: torch.device,
) -> tuple[Parameters, Fit]:
    """Fit one image; `hr_psf` None: a Gaussian of `HR_FWHM_PIXELS` HR pixels."""
    lens_light = None if settings.dark_lens else settings.lens_light or default_light(image, is_lens=True)
    if settings.dark_lens and settings.lens_light is not None:
        raise InputError("lens_light is given and dark_lens is set; take one of them out")
    source = settings.source or default_light(image, is_lens=False)
    parameters = make_parameters(settings.macro or default_macro(image), source, lens_light)
    hr_pixel = image.pixel_scale_arcsec / settings.scale
    optics = Optics(
        hr_psf=hr_psf or PSFSettings(kind="gaussian", fwhm_arcsec=HR_FWHM_PIXELS * hr_pixel),
        lr_psf=image.psf,
        lr_pixel_scale_arcsec=image.pixel_scale_arcsec,
        lr_size=len(image.flux),
        scale=settings.scale,
        supersampling=SUPERSAMPLING,
    )
    fitter = Fitter(parameters, optics, settings.fit, torch.Generator().manual_seed(seed), device)
    flux, noise = (torch.from_numpy(one).to(device, torch.float64)[None] for one in (image.flux, image.noise))
    return parameters, fitter.fit(Images(flux, noise))


def fit_fits(
    source: Path,
    target: Path,
    psf: PsfChoice,
    settings: ImageFitSettings,
    seed: int,
    device: torch.device,
    hdu: str | None = None,
    noise_sigma: float | None = None,
    pixel_scale: float | None = None,
    hr_instrument: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fit the lens in `source` and write the folder `target`: see `image_result`. Returns what fit.json holds.

    Raises `InputError` if the image or a setting is wrong, or if `target` exists and `overwrite` is not set.
    """
    if target.exists() and not (overwrite and target.is_dir()):
        raise InputError(f"{target}: exists already; choose another folder for the result, or ask to overwrite it")
    image = read_lens_image(source, psf, hdu, noise_sigma, pixel_scale)
    hr_psf = load_instrument(hr_instrument).psf if hr_instrument is not None else None
    parameters, fit = fit_image(image, settings, hr_psf, seed, device)
    return write_result(target, image, parameters, fit, settings.scale)
