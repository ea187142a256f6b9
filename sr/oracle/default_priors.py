"""Priors for an image of which nothing is known but itself: wide, and scaled to its pixels and its light."""

import numpy as np

from simulate.deflectors import MacroSettings
from simulate.errors import InputError
from simulate.instruments import NANOJANSKY_ZERO_POINT
from simulate.priors import log_uniform, normal, uniform
from simulate.sources import SersicSettings

from .image_file import LensImage

FAINTEST, BRIGHTEST = 1e-3, 1.5
"""A component's flux without lensing, in units of the light above the noise: magnified sources have little of it."""


def default_macro(image: LensImage) -> MacroSettings:
    """A galaxy within two pixels of the middle, its ring anywhere in the image."""
    half_width = len(image.flux) / 2 * image.pixel_scale_arcsec
    place = normal(0.0, 2 * image.pixel_scale_arcsec)
    return MacroSettings(
        theta_e_arcsec=log_uniform(2 * image.pixel_scale_arcsec, 0.9 * half_width),
        slope=normal(2.0, 0.1),
        e1=normal(0.0, 0.15),
        e2=normal(0.0, 0.15),
        gamma1=normal(0.0, 0.05),
        gamma2=normal(0.0, 0.05),
        center_x_arcsec=place,
        center_y_arcsec=place,
    )


def default_light(image: LensImage, is_lens: bool) -> SersicSettings:
    """A Sersic profile of any size that the image shows; the source's place is as uncertain as its size."""
    seen = image.flux[np.isfinite(image.noise) & (image.flux > 2 * image.noise)]
    total = float(seen.sum())
    if not total > 0:
        raise InputError(f"{image.where}: no pixel is brighter than twice the noise; there is nothing to fit")
    half_width = len(image.flux) / 2 * image.pixel_scale_arcsec
    faint, bright = (NANOJANSKY_ZERO_POINT - 2.5 * float(np.log10(share * total)) for share in (FAINTEST, BRIGHTEST))
    place = normal(0.0, 2 * image.pixel_scale_arcsec if is_lens else 0.1 * half_width)
    smallest, largest = (
        (0.3 * image.pixel_scale_arcsec, half_width) if is_lens else (0.2 * image.pixel_scale_arcsec, 0.3 * half_width)
    )
    return SersicSettings(
        magnitude=uniform(bright, faint),
        radius_arcsec=log_uniform(max(smallest, 1e-3), largest),
        sersic_index=log_uniform(0.5, 6.0) if is_lens else log_uniform(0.5, 4.0),
        e1=normal(0.0, 0.2),
        e2=normal(0.0, 0.2),
        center_x_arcsec=place,
        center_y_arcsec=place,
    )
