"""The smooth mass of a lens, drawn from priors: the main galaxy, its shear and multipoles, and its neighbours."""

from typing import Self

import numpy as np
from pydantic import model_validator

from .populations.base import LensModels
from .priors import Prior, normal, uniform
from .settings import Settings
from .sources.sersic import clip_ellipticity


class MultipoleSettings(Settings):
    """How far contours of the convergence depart from ellipses: r -> r (1 + a_m/a cos(m (phi - phi_m))).

    The defaults are the scatter of the isophotes of elliptical galaxies (Hao et al. 2006, MNRAS 370, 1339). Order 3 is
    turned at random; order 4 lies along the major axis: positive is disky, negative boxy.
    """

    a3_over_a: Prior = normal(0.0, 0.005)
    a4_over_a: Prior = normal(0.0, 0.01)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.a3_over_a.require("a3_over_a", -0.2, 0.2)
        self.a4_over_a.require("a4_over_a", -0.2, 0.2)
        return self


class MacroSettings(Settings):
    """The smooth lens: an elliptical power law (slope 2: SIE) in external shear; lenstronomy's conventions."""

    theta_e_arcsec: Prior = uniform(0.8, 1.3)
    slope: Prior = normal(2.0, 0.05)
    e1: Prior = normal(0.0, 0.1)
    e2: Prior = normal(0.0, 0.1)
    gamma1: Prior = normal(0.0, 0.03)
    gamma2: Prior = normal(0.0, 0.03)
    center_x_arcsec: Prior = normal(0.0, 0.02)
    center_y_arcsec: Prior = normal(0.0, 0.02)
    multipoles: MultipoleSettings | None = None
    """None: the contours are ellipses. `{}`: multipoles with the default priors."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.theta_e_arcsec.require("theta_e_arcsec", 1e-3)
        self.slope.require("slope", 1.2, 2.8)
        return self


class CompanionSettings(Settings):
    """Further galaxies of the lens's group, singular isothermal ellipsoids anywhere around the main one."""

    count: tuple[int, int] = (1, 4)
    """Fewest and most, each number equally likely."""
    theta_e_arcsec: Prior = uniform(0.1, 0.5)
    distance_arcsec: Prior = uniform(1.2, 3.0)
    e1: Prior = normal(0.0, 0.1)
    e2: Prior = normal(0.0, 0.1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        fewest, most = self.count
        if not 1 <= fewest <= most <= 20:
            raise ValueError(f"count must be [fewest, most] with 1 <= fewest <= most <= 20, found {list(self.count)}")
        self.theta_e_arcsec.require("theta_e_arcsec", 1e-3)
        self.distance_arcsec.require("distance_arcsec", 1e-3)
        return self


def draw_macro(settings: MacroSettings, rng: np.random.Generator) -> LensModels:
    """EPL, SHEAR and, if asked for, two MULTIPOLEs, as lenstronomy has them; angles in arcsec."""
    theta_e, slope = settings.theta_e_arcsec.draw(rng), settings.slope.draw(rng)
    e1, e2 = clip_ellipticity(settings.e1.draw(rng), settings.e2.draw(rng))
    centre = {"center_x": settings.center_x_arcsec.draw(rng), "center_y": settings.center_y_arcsec.draw(rng)}
    shear = {"gamma1": settings.gamma1.draw(rng), "gamma2": settings.gamma2.draw(rng), "ra_0": 0.0, "dec_0": 0.0}
    models: LensModels = [("EPL", {"theta_E": theta_e, "gamma": slope, "e1": e1, "e2": e2, **centre}), ("SHEAR", shear)]
    if settings.multipoles is not None:
        # A multipole's convergence is a_m cos(m (phi - phi_m)) / (2 r), that of an isothermal lens theta_E / (2 r).
        third, fourth = (
            theta_e * prior.draw(rng) for prior in (settings.multipoles.a3_over_a, settings.multipoles.a4_over_a)
        )
        turn, major_axis = float(rng.uniform(0, 2 * np.pi / 3)), float(np.arctan2(e2, e1) / 2)
        models += [
            ("MULTIPOLE", {"m": 3, "a_m": third, "phi_m": turn, **centre}),
            ("MULTIPOLE", {"m": 4, "a_m": fourth, "phi_m": major_axis, **centre}),
        ]
    return models


def draw_companions(settings: CompanionSettings, rng: np.random.Generator) -> LensModels:
    """One SIE for every further galaxy of the group."""
    models: LensModels = []
    for _ in range(int(rng.integers(settings.count[0], settings.count[1], endpoint=True))):
        theta_e, distance = settings.theta_e_arcsec.draw(rng), settings.distance_arcsec.draw(rng)
        e1, e2 = clip_ellipticity(settings.e1.draw(rng), settings.e2.draw(rng))
        azimuth = rng.uniform(0, 2 * np.pi)
        x, y = float(distance * np.cos(azimuth)), float(distance * np.sin(azimuth))
        models.append(("SIE", {"theta_E": theta_e, "e1": e1, "e2": e2, "center_x": x, "center_y": y}))
    return models
