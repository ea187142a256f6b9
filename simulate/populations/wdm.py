"""Warm dark matter: the subhalos of CDM, less those that free streaming kept from forming, and less concentrated.

Below the half-mode mass of a thermal relic (Schneider et al. 2012, MNRAS 424, 684, eq. 5 to 8, after Viel et al. 2005)
subhalos are fewer by (1 + (4.2 M_hm / m)^2.5)^-0.2 (Lovell 2020, ApJ 897, 147: bound masses) and their concentration is
lower by (1 + 60 M_hm / m)^-0.17 (1 + z)^(0.026 z - 0.04) (Bose et al. 2016, MNRAS 455, 318).
"""

from typing import Self

import numpy as np
from pydantic import model_validator

from ..cosmology import CosmologySettings
from ..priors import Prior, log_uniform
from .base import Substructure, SubstructureContext
from .cdm import tnfw_models
from .subhalos import SubhaloSettings, draw_subhalos

_TRANSFER_POWER = 1.12


class WDMSettings(SubhaloSettings):
    """Priors of the subhalos; the amplitude is that of CDM, before any are taken away."""

    relic_mass_kev: Prior = log_uniform(2.0, 6.0)

    @model_validator(mode="after")
    def _check_relic(self) -> Self:
        self.relic_mass_kev.require("relic_mass_kev", 0.1)
        return self


def half_mode_mass_msun(relic_mass_kev: float, cosmology: CosmologySettings) -> float:
    """Mass of the sphere whose diameter is the wavelength at which the transfer function is 1/2."""
    h = cosmology.h0_km_s_mpc / 100
    cutoff_mpc = 0.049 * relic_mass_kev**-1.11 * (cosmology.omega_m / 0.25) ** 0.11 * (h / 0.7) ** 1.22 / h
    wavelength_mpc = 2 * np.pi * cutoff_mpc * (2 ** (_TRANSFER_POWER / 5) - 1) ** (-1 / (2 * _TRANSFER_POWER))
    matter_msun_mpc3 = cosmology.omega_m * cosmology.critical_density_msun_kpc3(0) * 1e9
    return float(4 / 3 * np.pi * matter_msun_mpc3 * (wavelength_mpc / 2) ** 3)


def survival(mass_msun: np.ndarray, half_mode_msun: float) -> np.ndarray:
    """Number of WDM subhalos of this bound mass over that of CDM (Lovell 2020)."""
    return (1 + (4.2 * half_mode_msun / mass_msun) ** 2.5) ** -0.2


def concentration_factor(mass_msun: np.ndarray, half_mode_msun: float, z: float) -> np.ndarray:
    """Concentration of a WDM halo over that of a CDM halo (Bose et al. 2016)."""
    return (1 + 60 * half_mode_msun / mass_msun) ** -0.17 * (1 + z) ** (0.026 * z - 0.04)


def draw_wdm(settings: WDMSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Truncated NFW subhalos in the disc around the image, suppressed below the half-mode mass."""
    geometry = context.geometry
    relic_mass_kev = settings.relic_mass_kev.draw(rng)
    half_mode_msun = half_mode_mass_msun(relic_mass_kev, geometry.cosmology)
    subhalos = draw_subhalos(
        settings,
        context,
        rng,
        survival=lambda mass: survival(mass, half_mode_msun),
        concentration_factor=lambda mass: concentration_factor(mass, half_mode_msun, geometry.z_lens),
    )
    return Substructure(
        tnfw_models(subhalos, geometry),
        subhalos.mean_convergence,
        {"relic_mass_kev": relic_mass_kev, "half_mode_mass_msun": half_mode_msun, **subhalos.draw()},
    )
