"""One lens in physical numbers: drawn from priors, written as lenstronomy model lists that anyone can render again."""

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.special import gamma as gamma_function

from .cosmology import CosmologySettings, LensGeometry
from .instruments import NANOJANSKY_ZERO_POINT
from .populations import PopulationSettings, SubstructureContext, draw_substructure
from .priors import Prior, normal, uniform
from .settings import Settings


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

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.theta_e_arcsec.require("theta_e_arcsec", 1e-3)
        self.slope.require("slope", 1.2, 2.8)
        return self


class SersicSettings(Settings):
    """An elliptical Sersic profile; the radius is the product average of its axes, as in lenstronomy."""

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


class SceneSettings(Settings):
    """Priors of everything that is the same for all kinds of dark matter, and of the kinds themselves."""

    cosmology: CosmologySettings = CosmologySettings()
    z_lens: Prior = uniform(0.3, 0.7)
    z_source: Prior = uniform(1.0, 2.5)
    macro: MacroSettings = MacroSettings()
    source: SersicSettings = SersicSettings()
    lens_light: SersicSettings | None = None
    populations: PopulationSettings = PopulationSettings()
    compensate_mean_mass: bool = True
    supersampling: int = Field(4, ge=1, le=16)
    """Rays along one axis of an HR pixel. With 2, cusps of small sources are off by up to 6 % of the peak."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.z_lens.require("z_lens", 0.01)
        self.z_source.require("z_source", 0.02)
        farthest_lens, nearest_source = self.z_lens.bounds()[1], self.z_source.bounds()[0]
        if farthest_lens >= nearest_source:
            raise ValueError(
                f"lenses must lie before sources: z_lens up to {farthest_lens}, z_source from {nearest_source}"
            )
        return self


@dataclass(frozen=True)
class Scene:
    """One lens: lenstronomy's model lists and arguments, redshifts, and the physical draw behind them."""

    kind: str
    lens_model_list: list[str]
    kwargs_lens: list[dict[str, float]]
    source_model_list: list[str]
    kwargs_source: list[dict[str, float]]
    lens_light_model_list: list[str]
    kwargs_lens_light: list[dict[str, float]]
    z_lens: float
    z_source: float
    cosmology: dict[str, float]
    draw: dict[str, Any]

    def to_json(self) -> str:
        """The scene as stored beside its images; `amp` is in nJy per square arcsecond, angles in arcsec."""
        return json.dumps(vars(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """The inverse of `to_json`, exact to the last bit."""
        return cls(**json.loads(text))


def sersic_flux(radius_arcsec: float, sersic_index: float) -> float:
    """Flux of a Sersic profile of unit surface brightness at its half-light radius, in square arcseconds.

    2 pi n R^2 e^b b^(-2n) Gamma(2n) (Graham & Driver 2005, PASA 22, 118, eq. 2), with lenstronomy's
    b = 1.9992 n - 0.3271.
    """
    n, b = sersic_index, 1.9992 * sersic_index - 0.3271
    return float(2 * np.pi * n * radius_arcsec**2 * np.exp(b) * b ** (-2 * n) * gamma_function(2 * n))


def _clip_ellipticity(e1: float, e2: float, limit: float = 0.6) -> tuple[float, float]:
    """Shorten (e1, e2) to `limit` (axis ratio 0.25): beyond it no galaxy lies, and at 1 the profiles are singular."""
    size = np.hypot(e1, e2)
    return (e1, e2) if size <= limit else (float(e1 * limit / size), float(e2 * limit / size))


def _draw_sersic(settings: SersicSettings, rng: np.random.Generator) -> dict[str, float]:
    magnitude, radius, index = (
        prior.draw(rng) for prior in (settings.magnitude, settings.radius_arcsec, settings.sersic_index)
    )
    e1, e2 = _clip_ellipticity(settings.e1.draw(rng), settings.e2.draw(rng))
    flux_njy = 10 ** (-0.4 * (magnitude - NANOJANSKY_ZERO_POINT))
    return {
        "amp": flux_njy / sersic_flux(radius, index),
        "R_sersic": radius,
        "n_sersic": index,
        "e1": e1,
        "e2": e2,
        "center_x": settings.center_x_arcsec.draw(rng),
        "center_y": settings.center_y_arcsec.draw(rng),
    }


def draw_scene(kind: str, settings: SceneSettings, field_radius_arcsec: float, rng: np.random.Generator) -> Scene:
    """Draw one lens. All that the kinds share is drawn first, so it has the same distribution for each of them."""
    macro = settings.macro
    z_lens, z_source = settings.z_lens.draw(rng), settings.z_source.draw(rng)
    theta_e = macro.theta_e_arcsec.draw(rng)
    slope = macro.slope.draw(rng)
    e1, e2 = _clip_ellipticity(macro.e1.draw(rng), macro.e2.draw(rng))
    center_x, center_y = macro.center_x_arcsec.draw(rng), macro.center_y_arcsec.draw(rng)
    shear = {"gamma1": macro.gamma1.draw(rng), "gamma2": macro.gamma2.draw(rng), "ra_0": 0.0, "dec_0": 0.0}
    source = _draw_sersic(settings.source, rng)
    lens_light = [] if settings.lens_light is None else [_draw_sersic(settings.lens_light, rng)]

    geometry = LensGeometry(settings.cosmology, z_lens, z_source)
    context = SubstructureContext(geometry, theta_e, field_radius_arcsec)
    substructure = draw_substructure(kind, settings.populations, context, rng)
    smooth: list[tuple[str, dict[str, float]]] = [
        ("EPL", {"theta_E": theta_e, "gamma": slope, "e1": e1, "e2": e2, "center_x": center_x, "center_y": center_y}),
        ("SHEAR", shear),
    ]
    if settings.compensate_mean_mass and substructure.mean_convergence > 0:
        smooth.append(("CONVERGENCE", {"kappa": -substructure.mean_convergence, "ra_0": 0.0, "dec_0": 0.0}))
    lens_models = smooth + substructure.lens_models
    return Scene(
        kind=kind,
        lens_model_list=[name for name, _ in lens_models],
        kwargs_lens=[kwargs for _, kwargs in lens_models],
        source_model_list=["SERSIC_ELLIPSE"],
        kwargs_source=[source],
        lens_light_model_list=["SERSIC_ELLIPSE"] * len(lens_light),
        kwargs_lens_light=lens_light,
        z_lens=z_lens,
        z_source=z_source,
        cosmology={"H0": settings.cosmology.h0_km_s_mpc, "Om0": settings.cosmology.omega_m},
        draw={
            "mean_substructure_convergence": substructure.mean_convergence,
            "critical_surface_density_msun_arcsec2": geometry.critical_surface_density_msun_arcsec2,
            **substructure.draw,
        },
    )
