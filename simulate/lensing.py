"""Kinds of lensing: what there is besides one deflector, one galaxy far behind it, and dark matter."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag

from .cosmology import LensGeometry
from .deflectors import CompanionSettings, draw_companions
from .lens_equation import Deflection, find_point_images
from .populations.base import LensModels
from .priors import Prior, uniform
from .settings import Settings
from .sources import SersicSettings, SourceSettings, Split, draw_source
from .sources.base import LightModels, flux_njy
from .sources.sersic import draw_sersic


class GalaxyGalaxySettings(Settings):
    """One galaxy lensed by another."""

    kind: Literal["galaxy-galaxy"] = "galaxy-galaxy"


class QuasarSettings(Settings):
    """A point of light at the centre of the source galaxy, seen wherever the lens equation has a solution."""

    kind: Literal["quasar"] = "quasar"
    magnitude: Prior = uniform(22.0, 25.0)
    """Before lensing."""
    minimum_magnification: float = Field(0.01, gt=0, lt=1)
    """Images less magnified than this are left out."""


class DoubleSourcePlaneSettings(Settings):
    """A second galaxy behind the first, seen through the same lens. The first one's own mass deflects nothing."""

    kind: Literal["double-source-plane"] = "double-source-plane"
    z_source_2: Prior = uniform(2.6, 4.5)
    source_2: SourceSettings = SersicSettings()


class GroupSettings(Settings):
    """The lens has neighbours that deflect, too, and shine if it does."""

    kind: Literal["group"] = "group"
    companions: CompanionSettings = CompanionSettings()


def _by_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _kind_of(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


LensingSettings = Annotated[
    Annotated[GalaxyGalaxySettings, Tag("galaxy-galaxy")]
    | Annotated[QuasarSettings, Tag("quasar")]
    | Annotated[DoubleSourcePlaneSettings, Tag("double-source-plane")]
    | Annotated[GroupSettings, Tag("group")],
    Discriminator(
        _kind_of,
        custom_error_type="unknown_kind",
        custom_error_message="a kind of lensing: galaxy-galaxy, quasar, double-source-plane or group",
    ),
    BeforeValidator(_by_name),
]
"""`lensing: group`, or a mapping with `kind` and that kind's settings."""


@dataclass(frozen=True)
class Additions:
    """What a kind of lensing adds to a scene."""

    lens_models: LensModels = field(default_factory=list)
    lens_light: list[dict[str, float]] = field(default_factory=list)
    """SERSIC_ELLIPSE arguments."""
    sources: LightModels = field(default_factory=list)
    deflection_scaling: float = 1.0
    """Of `sources`, relative to a source at the scene's z_source."""
    draw: dict[str, Any] = field(default_factory=dict)


def draw_additions(
    settings: LensingSettings,
    lens_light: SersicSettings | None,
    geometry: LensGeometry,
    theta_e_arcsec: float,
    split: Split,
    rng: np.random.Generator,
) -> Additions:
    """Draw what is special to this kind of lensing, from the same priors for all kinds of dark matter."""
    if isinstance(settings, GroupSettings):
        companions = draw_companions(settings.companions, rng)
        light = [] if lens_light is None else _draw_companion_light(lens_light, companions, theta_e_arcsec, rng)
        return Additions(lens_models=companions, lens_light=light)
    if isinstance(settings, DoubleSourcePlaneSettings):
        z_source_2 = settings.z_source_2.draw(rng)
        source = draw_source(settings.source_2, split, rng)
        scaling = deflection_scaling(geometry, replace(geometry, z_source=z_source_2))
        draw = {"z_source_2": z_source_2, "source_2": source.draw}
        return Additions(sources=source.light_models, deflection_scaling=scaling, draw=draw)
    if isinstance(settings, QuasarSettings):
        return Additions(draw={"quasar_magnitude": settings.magnitude.draw(rng)})
    return Additions()


def deflection_scaling(geometry: LensGeometry, geometry_2: LensGeometry) -> float:
    """How much more a source at `geometry_2.z_source` is deflected than one at `geometry.z_source` by the same lens.

    Reduced deflections are D_ls / D_s times the physical ones (Schneider, Ehlers & Falco 1992, eq. 2.15).
    """
    first, second = (one.distance_lens_source_mpc / one.distance_source_mpc for one in (geometry, geometry_2))
    return second / first


def _draw_companion_light(
    settings: SersicSettings, companions: LensModels, main_theta_e_arcsec: float, rng: np.random.Generator
) -> list[dict[str, float]]:
    """Light of every companion: a draw from the main galaxy's prior, made smaller, at its own place.

    The radius shrinks as theta_E does at the same surface brightness, so flux ~ theta_E^2 ~ sigma^4 (Faber & Jackson
    1976, ApJ 204, 668).
    """
    lights = []
    for _, mass in companions:
        light = draw_sersic(settings, rng)
        light["R_sersic"] *= mass["theta_E"] / main_theta_e_arcsec
        light["center_x"] += mass["center_x"]
        light["center_y"] += mass["center_y"]
        lights.append(light)
    return lights


def quasar_images(
    settings: QuasarSettings,
    deflection: Deflection,
    x_arcsec: float,
    y_arcsec: float,
    magnitude: float,
    theta_e_arcsec: float,
) -> dict[str, list[float]]:
    """LENSED_POSITION arguments of a point source at (x, y) of the source plane: in every list, an entry an image.

    Nothing is deflected by much more than `theta_e_arcsec` (of all deflectors together), which bounds the search.
    """
    window_arcsec = 2 * (theta_e_arcsec + float(np.hypot(x_arcsec, y_arcsec)))
    images = find_point_images(deflection, x_arcsec, y_arcsec, window_arcsec, settings.minimum_magnification)
    return {
        "ra_image": images.x_arcsec.tolist(),
        "dec_image": images.y_arcsec.tolist(),
        "point_amp": (flux_njy(magnitude) * np.abs(images.magnification)).tolist(),
    }
