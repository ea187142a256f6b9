"""Cold dark matter: truncated NFW subhalos."""

import numpy as np

from ..cosmology import LensGeometry
from .base import Substructure, SubstructureContext
from .halos import tnfw_alpha_rs
from .subhalos import Subhalos, SubhaloSettings, draw_subhalos


class CDMSettings(SubhaloSettings):
    """Priors of the subhalos."""


def tnfw_models(subhalos: Subhalos, geometry: LensGeometry) -> list[tuple[str, dict[str, float]]]:
    """The subhalos as lenstronomy profiles."""
    alpha_rs = tnfw_alpha_rs(subhalos.mass_msun, subhalos.scale_radius_kpc, subhalos.truncation_kpc, geometry)
    columns = (
        subhalos.scale_radius_kpc / geometry.kpc_per_arcsec,
        alpha_rs,
        subhalos.truncation_kpc / geometry.kpc_per_arcsec,
        subhalos.x_arcsec,
        subhalos.y_arcsec,
    )
    return [
        ("TNFW", {"Rs": rs, "alpha_Rs": alpha, "r_trunc": truncation, "center_x": x, "center_y": y})
        for rs, alpha, truncation, x, y in zip(*(column.tolist() for column in columns), strict=True)
    ]


def draw_cdm(settings: CDMSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Truncated NFW subhalos in the disc around the image."""
    subhalos = draw_subhalos(settings, context, rng)
    return Substructure(tnfw_models(subhalos, context.geometry), subhalos.mean_convergence, subhalos.draw())
