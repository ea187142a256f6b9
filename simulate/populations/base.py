"""What a population of substructure is given, and what it gives back."""

from dataclasses import dataclass, field
from typing import Any

from ..cosmology import LensGeometry

LensModels = list[tuple[str, dict[str, float]]]


@dataclass(frozen=True)
class SubstructureContext:
    """The lens into which substructure is drawn."""

    geometry: LensGeometry
    theta_e_arcsec: float
    field_radius_arcsec: float
    """Half the diagonal of the image: perturbers farther out are not drawn."""
    center_x_arcsec: float = 0.0
    center_y_arcsec: float = 0.0
    """The centre of the macro-model. What fills the whole image is drawn around the origin all the same."""


@dataclass(frozen=True)
class Substructure:
    """Perturbers as lenstronomy (profile, kwargs), their expected mean convergence, and the physical draw."""

    lens_models: LensModels = field(default_factory=list)
    mean_convergence: float = 0.0
    """Expectation of the convergence added inside the Einstein ring, on average over its area: with it goes the ring's
    radius. The scene compensates it with a negative sheet at the lens's redshift."""
    draw: dict[str, Any] = field(default_factory=dict)
    redshifts: list[float] = field(default_factory=list)
    """Empty: everything is at the lens's redshift. Else one redshift per lens model, for the multi-plane equation."""
