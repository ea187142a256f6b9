"""Scenes as the published generator of the DeepLense data sets draws them, flaws included, to compare with old papers.

DeepLenseSim (github.com/mwt5345/DeepLenseSim: deeplense/lens.py and the scripts of Model_I, Model_II and Model_III)
gives every lens the same macro-model, source profile and redshifts; only the source's position and the substructure
vary:

- a "halo" of 1e12 solar masses becomes an SIE with the Einstein radius of a point mass, from luminosity distances and
  D_ls = D_s - D_l: 1.281" instead of 1.665";
- cdm: always 25 point masses, dN/dm ~ m^-0.9 from 1e6 to 1e10 solar masses (observed: m^-1.9, with 111 times less
  mass), 0.25" to 2" from the centre, uniform in radius and not in area;
- axion: 3e10 solar masses in 100 point masses on a line through the centre of the lens, 0.06" x (1e-22 eV / m) long
  whatever the halo;
- the added mass is not compensated, so the size of the ring tells the classes apart;
- Models II and III give their deflections as those of a source at redshift 2.5, but their source is at 1, where
  lenstronomy makes them 0.634 times as large: the ring's radius is 0.81".

Not for new work: `populations` has the physics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from .cosmology import CosmologySettings, LensGeometry
from .errors import InputError
from .instruments import NANOJANSKY_ZERO_POINT
from .populations.base import LensModels
from .populations.subhalos import draw_masses_msun
from .scene import Scene
from .sources.sersic import sersic_flux

Z_LENS, Z_SOURCE = 0.5, 1.0
HALO_MASS_MSUN = 1e12
SUBHALO_COUNT, SUBHALO_SLOPE, SUBHALO_LIMITS_MSUN, SUBHALO_RADII_ARCSEC = 25, -0.9, (1e6, 1e10), (0.25, 2.0)
VORTEX_MASS_MSUN, VORTEX_POINTS, VORTEX_ARCSEC_AT_1E22_EV = 3e10, 100, 0.06
LOG10_AXION_MASS_EV = (-24.0, -22.0)
SOURCE_RADIUS_ARCSEC, SOURCE_INDEX, SOURCE_OFFSET_ARCSEC = 0.25, 1.0, 0.35

_COSMOLOGY = CosmologySettings(h0_km_s_mpc=70.0, omega_m=0.3)
_PYHALO_COSMOLOGY = CosmologySettings(h0_km_s_mpc=69.7, omega_m=0.2814)
"""The default cosmology of pyHalo when the data sets were made (WMAP9); Models II and III ask it for distances."""


@dataclass(frozen=True)
class LegacyPreset:
    """How one published data set differs from the others, as far as the scene goes."""

    source_amp: float
    """Surface brightness at the half-light radius, nJy per square arcsecond (Model I has arbitrary units)."""
    convention_redshift: float = Z_SOURCE
    """Redshift of the source for which the lens models are said to give the reduced deflections."""

    @cached_property
    def deflection_factor(self) -> float:
        """What the source sees of the deflections as written down: the ratio of D_ls / D_s at the two redshifts."""
        source, convention = (
            LensGeometry(_PYHALO_COSMOLOGY, Z_LENS, z_source) for z_source in (Z_SOURCE, self.convention_redshift)
        )
        return (source.distance_lens_source_mpc / source.distance_source_mpc) / (
            convention.distance_lens_source_mpc / convention.distance_source_mpc
        )


_MAGNITUDE_20 = LegacyPreset(
    source_amp=10 ** (-0.4 * (20 - NANOJANSKY_ZERO_POINT)) / sersic_flux(SOURCE_RADIUS_ARCSEC, SOURCE_INDEX),
    convention_redshift=2.5,
)
LEGACY_PRESETS: Mapping[str, LegacyPreset] = {
    "deeplensesim-model-1": LegacyPreset(source_amp=20.0),
    "deeplensesim-model-2": _MAGNITUDE_20,
    "deeplensesim-model-3": _MAGNITUDE_20,  # differs from Model II in the instrument alone
}


@cache
def _einstein_radius_of_one_msun() -> float:
    """In arcseconds: the true one, with the distances in it exchanged."""
    true = LensGeometry(_COSMOLOGY, Z_LENS, Z_SOURCE)
    right = true.distance_lens_source_mpc / (true.distance_lens_mpc * true.distance_source_mpc)
    lens_mpc = true.distance_lens_mpc * (1 + Z_LENS) ** 2  # luminosity distances
    source_mpc = true.distance_source_mpc * (1 + Z_SOURCE) ** 2
    published = (source_mpc - lens_mpc) / (lens_mpc * source_mpc)
    return float(true.einstein_radius_arcsec(1.0) * np.sqrt(published / right))


def legacy_einstein_radius_arcsec(mass_msun: float) -> float:
    """The published Einstein radius of this mass: sqrt(4 G M / c^2 (D_s - D_l) / (D_l D_s)), luminosity distances."""
    return _einstein_radius_of_one_msun() * float(np.sqrt(mass_msun))


def _point_masses(
    masses_msun: np.ndarray, x_arcsec: np.ndarray, y_arcsec: np.ndarray, deflection_factor: float
) -> LensModels:
    """Point masses; their deflection goes as theta_E squared, so theta_E takes the root of the factor."""
    theta_e_arcsec = _einstein_radius_of_one_msun() * np.sqrt(deflection_factor * masses_msun)
    return [
        ("POINT_MASS", {"theta_E": float(theta_e), "center_x": float(x), "center_y": float(y)})
        for theta_e, x, y in zip(theta_e_arcsec, x_arcsec, y_arcsec, strict=True)
    ]


def _draw_subhalos(factor: float, rng: np.random.Generator) -> tuple[LensModels, dict[str, Any]]:
    """Exactly 25 point masses. (The published code draws a Poisson number of mean 25 and does not use it.)"""
    masses = draw_masses_msun(SUBHALO_SLOPE, *SUBHALO_LIMITS_MSUN, SUBHALO_COUNT, rng)
    radius = rng.uniform(*SUBHALO_RADII_ARCSEC, SUBHALO_COUNT)
    azimuth = rng.uniform(0, 2 * np.pi, SUBHALO_COUNT)
    models = _point_masses(masses, radius * np.cos(azimuth), radius * np.sin(azimuth), factor)
    return models, {"subhalo_mass_msun": masses.tolist()}


def _draw_vortex(factor: float, rng: np.random.Generator) -> tuple[LensModels, dict[str, Any]]:
    """Equal point masses, evenly spaced from end to end of a line centred on the lens."""
    axion_mass_ev = float(10 ** rng.uniform(*LOG10_AXION_MASS_EV))
    angle_rad = float(rng.uniform(0, 2 * np.pi))
    length_arcsec = VORTEX_ARCSEC_AT_1E22_EV * 1e-22 / axion_mass_ev
    along = np.linspace(-length_arcsec / 2, length_arcsec / 2, VORTEX_POINTS)
    masses = np.full(VORTEX_POINTS, VORTEX_MASS_MSUN / VORTEX_POINTS)
    models = _point_masses(masses, along * np.cos(angle_rad), along * np.sin(angle_rad), factor)
    return models, {
        "axion_mass_ev": axion_mass_ev,
        "vortex_mass_msun": VORTEX_MASS_MSUN,
        "vortex_length_arcsec": length_arcsec,
        "vortex_angle_rad": angle_rad,
    }


def _draw_nothing(factor: float, rng: np.random.Generator) -> tuple[LensModels, dict[str, Any]]:  # noqa: ARG001
    return [], {}


_SUBSTRUCTURE = {"axion": _draw_vortex, "cdm": _draw_subhalos, "none": _draw_nothing}


def draw_legacy_scene(preset: str, kind: str, rng: np.random.Generator) -> Scene:
    """Draw one lens of a published data set; its lens models give the deflections that its source really sees.

    Raises `InputError` for a preset that does not exist or a kind of dark matter that the data sets do not have.
    """
    if preset not in LEGACY_PRESETS:
        raise InputError(f"unknown preset {preset!r}; known: {', '.join(LEGACY_PRESETS)}")
    if kind not in _SUBSTRUCTURE:
        raise InputError(
            f"{preset} has no class {kind!r}: the published data sets have {', '.join(_SUBSTRUCTURE)}; "
            "change simulate.classes, or leave out simulate.scene.preset"
        )
    factor = LEGACY_PRESETS[preset].deflection_factor
    center_x, center_y = rng.uniform(-SOURCE_OFFSET_ARCSEC, SOURCE_OFFSET_ARCSEC, 2)
    theta_e_arcsec = legacy_einstein_radius_arcsec(HALO_MASS_MSUN)
    substructure, draw = _SUBSTRUCTURE[kind](factor, rng)
    lens_models: LensModels = [
        ("SIE", {"theta_E": factor * theta_e_arcsec, "e1": 0.1, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}),
        ("SHEAR", {"gamma1": factor * 0.05, "gamma2": 0.0, "ra_0": 0.0, "dec_0": 0.0}),
        *substructure,
    ]
    source = {
        "amp": LEGACY_PRESETS[preset].source_amp,
        "R_sersic": SOURCE_RADIUS_ARCSEC,
        "n_sersic": SOURCE_INDEX,
        "e1": -0.1,
        "e2": 0.1,
        "center_x": float(center_x),
        "center_y": float(center_y),
    }
    return Scene(
        kind=kind,
        lens_model_list=[name for name, _ in lens_models],
        kwargs_lens=[kwargs for _, kwargs in lens_models],
        source_model_list=["SERSIC_ELLIPSE"],
        kwargs_source=[source],
        lens_light_model_list=[],
        kwargs_lens_light=[],
        z_lens=Z_LENS,
        z_source=Z_SOURCE,
        cosmology={"H0": _COSMOLOGY.h0_km_s_mpc, "Om0": _COSMOLOGY.omega_m},
        draw={
            "preset": preset,
            "published_theta_e_arcsec": theta_e_arcsec,
            "deflection_factor": factor,
            "mean_substructure_convergence": 0.0,
            **draw,
        },
    )
