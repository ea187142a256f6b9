"""A model that knows the degradation, told the PSF of one image: from a FITS file."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from simulate.errors import InputError
from simulate.instruments import psf_kernel
from simulate.psf import Psf
from simulate.shards import Band

from .degradation import UsualKernel, knows_degradation
from .operators import matching_kernels
from .psf_choice import PsfChoice, find_psf
from .trained_model import TrainedModel


def with_given_psf(
    model: TrainedModel, psf: Path, includes_pixel: bool, pixel_scale_arcsec: float | None, where: str
) -> tuple[TrainedModel, str]:
    """The model with the kernel between its HR instrument's PSF and that in the file `psf`, and what was done.

    `includes_pixel`: whether the PSF contains the response of the image's pixel, as one measured on stars does. `where`
    is the image, whose pixels are `pixel_scale_arcsec` wide (None: as the model's). If they are a little wider than the
    model's, so is everything that the network knows: PSFs are compared in pixels. Raises `InputError` if the model has
    no use for a PSF, does not have its HR PSF, or the file holds no PSF that is broader than that.
    """
    if not knows_degradation(model.network):
        raise InputError(
            f"--psf {psf}: has no effect: model {model.name} ({model.config.architecture}) is not told how images came "
            "about; leave --psf out, or give a --model of architecture 'unrolled'"
        )
    hr_band = model.kernel.hr_band if model.kernel is not None else None
    if hr_band is None:
        raise InputError(
            f"--psf {psf}: model {model.name} was saved by an older version, without the PSF of its HR instrument; "
            "leave --psf out, or train the model again"
        )
    own_pixel = model.config.lr_pixel_scale_arcsec
    pixel = pixel_scale_arcsec or own_pixel
    settings, note = find_psf(PsfChoice(file=psf, includes_pixel=includes_pixel), psf, pixel, where)
    step = hr_band.psf_pixel_scale_arcsec
    lr_band = Band("given", own_pixel, psf_kernel(settings, step * pixel / own_pixel), step)
    given, sharpest = (_fwhm_arcsec(band) * pixel / own_pixel for band in (lr_band, hr_band))
    if given < sharpest:
        raise InputError(
            f'--psf {psf}: expected a PSF broader than the {sharpest:.3g}" (FWHM) of {hr_band.instrument}, which model '
            f'{model.name} gives images of; found {given:.3g}"; check the pixel scale in its header (PIXSCALE)'
        )
    seen = model.config.training_range
    trained = f" ({seen.describe_fwhm()} in training)" if seen is not None else ""
    kernel = UsualKernel(matching_kernels(hr_band, lr_band)[0], hr_band)
    return replace(model, kernel=kernel), f'{note}, FWHM {given:.3g}"{trained}'


def _fwhm_arcsec(band: Band) -> float:
    middle = (len(band.psf) - 1) / 2
    return Psf(np.asarray(band.psf), (middle, middle), band.psf_pixel_scale_arcsec, includes_pixel=False).fwhm_arcsec
