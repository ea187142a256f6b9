"""A smooth galaxy: one elliptical Sersic profile."""

from typing import Literal, Self

import numpy as np
from pydantic import model_validator
from scipy.special import gamma as gamma_function

from ..priors import Prior, normal, uniform
from ..settings import Settings
from .base import Source, Split, flux_njy


class SersicSettings(Settings):
    """An elliptical Sersic profile; the radius is the product average of its axes, as in lenstronomy."""

    kind: Literal["sersic"] = "sersic"
    magnitude: Prior = uniform(22.0, 24.0)
    radius_arcsec: Prior = uniform(0.05, 0.25)
    sersic_index: Prior = uniform(0.8, 2.5)
    e1: Prior = normal(0.0, 0.15)
    e2: Prior = normal(0.0, 0.15)
    center_x_arcsec: Prior = normal(0.0, 0.1)
    center_y_arcsec: Prior = normal(0.0, 0.1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.radius_arcsec.require("radius_arcsec", 1e-3)
        self.sersic_index.require("sersic_index", 0.3, 8)
        return self


def sersic_b(sersic_index: float) -> float:
    """b of the Sersic profile exp(-b (R/R_e)^(1/n)), in lenstronomy's approximation 1.9992 n - 0.3271."""
    return 1.9992 * sersic_index - 0.3271


def sersic_flux(radius_arcsec: float, sersic_index: float) -> float:
    """Flux of a Sersic profile of unit surface brightness at its half-light radius, in square arcseconds.

    2 pi n R^2 e^b b^(-2n) Gamma(2n) (Graham & Driver 2005, PASA 22, 118, eq. 2), with lenstronomy's b.
    """
    n, b = sersic_index, sersic_b(sersic_index)
    return float(2 * np.pi * n * radius_arcsec**2 * np.exp(b) * b ** (-2 * n) * gamma_function(2 * n))


def clip_ellipticity(e1: float, e2: float, limit: float = 0.6) -> tuple[float, float]:
    """Shorten (e1, e2) to `limit` (axis ratio 0.25): beyond it no galaxy lies, and at 1 the profiles are singular."""
    size = np.hypot(e1, e2)
    return (e1, e2) if size <= limit else (float(e1 * limit / size), float(e2 * limit / size))


def draw_sersic(settings: SersicSettings, rng: np.random.Generator) -> dict[str, float]:
    """The arguments of one SERSIC_ELLIPSE; `amp` in nJy per square arcsecond."""
    magnitude, radius, index = (
        prior.draw(rng) for prior in (settings.magnitude, settings.radius_arcsec, settings.sersic_index)
    )
    e1, e2 = clip_ellipticity(settings.e1.draw(rng), settings.e2.draw(rng))
    return {
        "amp": flux_njy(magnitude) / sersic_flux(radius, index),
        "R_sersic": radius,
        "n_sersic": index,
        "e1": e1,
        "e2": e2,
        "center_x": settings.center_x_arcsec.draw(rng),
        "center_y": settings.center_y_arcsec.draw(rng),
    }


def draw_sersic_source(settings: SersicSettings, split: Split, rng: np.random.Generator) -> Source:  # noqa: ARG001
    """One smooth galaxy."""
    return Source([("SERSIC_ELLIPSE", draw_sersic(settings, rng))], {"source_kind": "sersic"})
