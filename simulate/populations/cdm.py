"""Cold dark matter: Poisson-many truncated NFW subhalos.

Bound masses follow dN/dm ~ m^-1.9 (Springel et al. 2008), normalised by f_sub, the share of the macro-model's
convergence at the Einstein ring (1/2 for an isothermal lens) that is in subhalos. Scale radii follow the
mass-concentration relation of Dutton & Maccio (2014, MNRAS 441, 3359, eq. 8) with log-normal scatter, truncation radii
the tidal scaling of Cyr-Racine et al. (2016, PRD 94, 043505), r_t = 1.4 kpc (m / 1e7)^(1/3) (r / 50 kpc)^(2/3).
A subhalo's density is normalised so that its whole mass (not the mass inside some radius) is the m that was drawn.
"""

import numpy as np
from pydantic import Field, model_validator

from ..cosmology import LensGeometry
from ..settings import Settings
from .base import Substructure, SubstructureContext


class CDMSettings(Settings):
    """Priors of the subhalos."""

    f_sub: float = Field(0.01, ge=0, lt=1)
    mass_slope: float = -1.9
    mass_min_msun: float = Field(1e8, gt=0)
    mass_max_msun: float = Field(1e10, gt=0)
    concentration_scatter_dex: float = Field(0.11, ge=0)
    host_core_kpc: float = Field(100.0, gt=0)
    """Half the depth along the line of sight in which subhalos are spread evenly (the host's core)."""

    @model_validator(mode="after")
    def _check(self) -> "CDMSettings":
        if self.mass_min_msun >= self.mass_max_msun:
            raise ValueError(f"mass_min_msun {self.mass_min_msun:g} must be below mass_max_msun {self.mass_max_msun:g}")
        return self


def _power_integral(power: float, low: float, high: float) -> float:
    """Integral of m^power from low to high."""
    if abs(power + 1) < 1e-12:
        return float(np.log(high / low))
    return (high ** (power + 1) - low ** (power + 1)) / (power + 1)


def mean_mass_msun(slope: float, low_msun: float, high_msun: float) -> float:
    """Mean mass of dN/dm ~ m^slope between the two masses."""
    return _power_integral(slope + 1, low_msun, high_msun) / _power_integral(slope, low_msun, high_msun)


def draw_masses_msun(slope: float, low: float, high: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) masses from dN/dm ~ m^slope by inverting its cumulative distribution."""
    share = rng.uniform(size=count)
    power = slope + 1
    if abs(power) < 1e-12:
        return low * (high / low) ** share
    return (low**power + share * (high**power - low**power)) ** (1 / power)


def concentration(mass_msun: np.ndarray, z: float, h: float) -> np.ndarray:
    """Median c_200 of Dutton & Maccio (2014), eq. 8, for masses m_200 in solar masses."""
    norm = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * z**1.21)
    slope = -0.101 + 0.026 * z
    return 10 ** (norm + slope * np.log10(mass_msun * h / 1e12))


def tnfw_mass_factor(tau: np.ndarray) -> np.ndarray:
    """Whole mass of a truncated NFW halo in units of 4 pi rho_s r_s^3, tau = r_t / r_s.

    Baltz, Marshall & Oguri (2009, JCAP 01, 015), eq. A.4 at infinity.
    """
    squared = tau**2
    return squared / (squared + 1) ** 2 * ((squared - 1) * np.log(tau) + np.pi * tau - (squared + 1))


def tnfw_kwargs(
    mass_msun: np.ndarray, scale_radius_kpc: np.ndarray, truncation_kpc: np.ndarray, geometry: LensGeometry
) -> list[dict[str, float]]:
    """lenstronomy's TNFW parameters, without centres, of halos with these whole masses.

    lenstronomy's `alpha_Rs` is the deflection that an *untruncated* NFW halo of the same rho_s and r_s has at r_s:
    4 rho_s r_s^2 (1 + ln(1/2)) / Sigma_crit.
    """
    scale_arcsec = scale_radius_kpc / geometry.kpc_per_arcsec
    truncation_arcsec = truncation_kpc / geometry.kpc_per_arcsec
    density_scale = mass_msun / (4 * np.pi * tnfw_mass_factor(truncation_kpc / scale_radius_kpc) * scale_arcsec**3)
    alpha = 4 * density_scale * scale_arcsec**2 * (1 + np.log(0.5)) / geometry.critical_surface_density_msun_arcsec2
    return [
        {"Rs": float(scale), "alpha_Rs": float(deflection), "r_trunc": float(truncation)}
        for scale, deflection, truncation in zip(scale_arcsec, alpha, truncation_arcsec, strict=True)
    ]


def draw_cdm(settings: CDMSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Subhalos evenly spread over the image's disc, as those projected near an Einstein ring are."""
    geometry = context.geometry
    mean_convergence = 0.5 * settings.f_sub
    limits = (settings.mass_slope, settings.mass_min_msun, settings.mass_max_msun)
    area_arcsec2 = np.pi * context.field_radius_arcsec**2
    total_msun = mean_convergence * geometry.critical_surface_density_msun_arcsec2 * area_arcsec2
    count = int(rng.poisson(total_msun / mean_mass_msun(*limits)))

    masses = draw_masses_msun(*limits, count, rng)
    radius = context.field_radius_arcsec * np.sqrt(rng.uniform(size=count))
    azimuth = rng.uniform(0, 2 * np.pi, count)
    depth_kpc = rng.uniform(-settings.host_core_kpc, settings.host_core_kpc, count)
    scatter = 10 ** (settings.concentration_scatter_dex * rng.standard_normal(count))

    concentrations = concentration(masses, geometry.z_lens, geometry.cosmology.h0_km_s_mpc / 100) * scatter
    r200_kpc = (3 * masses / (800 * np.pi * geometry.critical_density_msun_kpc3)) ** (1 / 3)
    host_distance_kpc = np.hypot(radius * geometry.kpc_per_arcsec, depth_kpc)
    truncation_kpc = 1.4 * (masses / 1e7) ** (1 / 3) * (host_distance_kpc / 50) ** (2 / 3)
    profiles = tnfw_kwargs(masses, r200_kpc / concentrations, truncation_kpc, geometry)
    x, y = radius * np.cos(azimuth), radius * np.sin(azimuth)
    return Substructure(
        lens_models=[
            ("TNFW", {**profile, "center_x": float(one_x), "center_y": float(one_y)})
            for profile, one_x, one_y in zip(profiles, x, y, strict=True)
        ],
        mean_convergence=mean_convergence,
        draw={"subhalo_mass_msun": masses.tolist(), "subhalo_concentration": concentrations.tolist()},
    )
