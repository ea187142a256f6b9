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


@dataclass(frozen=True)
class Substructure:
    """Perturbers as lenstronomy (profile, kwargs), their expected mean convergence, and the physical draw."""

    lens_models: LensModels = field(default_factory=list)
    mean_convergence: float = 0.0
    """Expectation of the added convergence where the arcs are; the scene compensates it with a negative sheet."""
    draw: dict[str, Any] = field(default_factory=dict)
