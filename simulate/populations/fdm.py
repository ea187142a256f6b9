"""Fuzzy dark matter: the interference granules and the soliton of the lens's own dark halo.

A halo of waves with random phases and a Maxwellian distribution of velocities, sigma in each direction, has the density
correlation <rho(x) rho(x + r)> = rho^2 [1 + exp(-r^2 / l^2)] with the de Broglie length l = hbar / (m sigma), because
its wave function is a Gaussian random field. Projected, the convergence fluctuates about its mean with

    variance s^2 = sqrt(pi) l / Sigma_crit^2 * integral of rho^2 along the line of sight,
    power spectrum P(k) = pi l^2 s^2 exp(-k^2 l^2 / 4)

(Chan et al. 2020, PRL 125, 111102; Kawai et al. 2022, ApJ 925, 61; Powell et al. 2023, MNRAS 524, L84). Gaussians of
standard deviation l / 2, of either sign and thrown at random, have exactly that variance and power spectrum, however
many they are; the more, the more Gaussian the field. rho is the NFW profile of the host (its concentration from
Dutton & Maccio 2014) and sigma the velocity dispersion that the Einstein radius implies.

The soliton is the ground state (Schive et al. 2014, Nature Physics 10, 496, eq. 3), its core radius from the core-halo
relation (Schive et al. 2014, PRL 113, 261302, eq. 7); where it dominates, within three core radii (Mocz et al. 2017,
MNRAS 471, 4559), there are no granules. Its mass is taken from a wide Gaussian inside the Einstein ring.
"""

from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.special import gamma

from ..cosmology import CosmologySettings, LensGeometry
from ..priors import Prior, log_uniform
from ..settings import Settings
from .axion import de_broglie_wavelength_kpc
from .base import LensModels, Substructure, SubstructureContext
from .halos import concentration, nfw_density_msun_kpc3, r200_kpc

SOLITON_SLOPE = 8.0
_SOLITON_EDGE = 3.0
_RINGS = 64


class FDMSettings(Settings):
    """Priors of the particle and of the host, and how finely its granules are drawn."""

    axion_mass_ev: Prior = log_uniform(1e-23, 2e-23)
    host_mass_msun: Prior = log_uniform(5e12, 2e13)
    """M_200 of the lens's dark halo."""
    disc_in_theta_e: float = Field(2.0, ge=1)
    """Granules are drawn out to this many Einstein radii: beyond, there are no arcs."""
    granules_per_area: float = Field(2.0, gt=0)
    """Gaussians per coherence area pi l^2."""
    max_granules: int = Field(5000, ge=100)
    """With heavy particles, fewer and stronger Gaussians are drawn than `granules_per_area` asks for: the same power
    spectrum, but a less Gaussian field (excess kurtosis 2 / granules_per_area)."""
    soliton: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.axion_mass_ev.require("axion_mass_ev", 5e-24)  # lighter: solitons as wide as the Einstein ring
        self.host_mass_msun.require("host_mass_msun", 1e8)
        return self


def granule_variance(
    radius_kpc: np.ndarray, edge_kpc: float, host_mass_msun: float, length_kpc: float, geometry: LensGeometry
) -> np.ndarray:
    """s^2 of the convergence at these projected radii (R,); inside `edge_kpc` of the centre there are no granules."""
    mass = np.array(host_mass_msun)
    host_concentration = concentration(mass, geometry.z_lens, geometry.cosmology)
    scale_kpc = r200_kpc(mass, geometry) / host_concentration
    nodes, weights = np.polynomial.legendre.leggauss(32)
    start = np.arcsinh(np.sqrt(np.maximum(edge_kpc**2 - radius_kpc**2, 0)) / radius_kpc)
    half = (np.arcsinh(10 * scale_kpc / radius_kpc) - start) / 2
    distance = radius_kpc * np.cosh(start + half * (1 + nodes[:, None]))  # depth = R sinh(u), so d(depth) = distance du
    density = nfw_density_msun_kpc3(host_concentration, geometry) / (
        distance / scale_kpc * (1 + distance / scale_kpc) ** 2
    )
    squared = 2 * half * (weights @ (density**2 * distance))
    critical_msun_kpc2 = geometry.critical_surface_density_msun_arcsec2 / geometry.kpc_per_arcsec**2
    return np.sqrt(np.pi) * length_kpc * squared / critical_msun_kpc2**2


def _virial_ratio(cosmology: CosmologySettings, z: float) -> float:
    """zeta(z) / zeta(0) of Schive et al. (2014): the virial overdensity of Bryan & Norman (1998) over Omega_m."""

    def zeta(omega: float) -> float:
        return (18 * np.pi**2 + 82 * (omega - 1) - 39 * (omega - 1) ** 2) / omega

    return zeta(cosmology.omega_m_at(z)) / zeta(cosmology.omega_m)


def soliton_core_kpc(axion_mass_ev: float, host_mass_msun: float, cosmology: CosmologySettings, z: float) -> float:
    """Radius at which the soliton's density is half its central one: Schive et al. (2014, PRL), eq. 7."""
    host_factor = _virial_ratio(cosmology, z) ** (-1 / 6) * (host_mass_msun / 1e9) ** (-1 / 3)
    return 1.6 * (axion_mass_ev / 1e-22) ** -1 * (1 + z) ** -0.5 * host_factor


def soliton_density_msun_kpc3(axion_mass_ev: float, core_kpc: float) -> float:
    """Central density of the soliton: Schive et al. (2014, Nature Physics), eq. 3, in proper lengths."""
    return 1.9e9 * (axion_mass_ev / 1e-23) ** -2 * core_kpc**-4


def draw_fdm(settings: FDMSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Granules out to `disc_in_theta_e`, and the soliton, both around the centre of the macro-model."""
    geometry = context.geometry
    axion_mass_ev, host_mass_msun = settings.axion_mass_ev.draw(rng), settings.host_mass_msun.draw(rng)
    velocity_km_s = geometry.velocity_dispersion_km_s(context.theta_e_arcsec)
    length_kpc = de_broglie_wavelength_kpc(axion_mass_ev, velocity_km_s) / (2 * np.pi)
    core_kpc = soliton_core_kpc(axion_mass_ev, host_mass_msun, geometry.cosmology, geometry.z_lens)
    lens_models = _granules(settings, context, rng, host_mass_msun, length_kpc, _SOLITON_EDGE * core_kpc)
    draw: dict[str, Any] = {
        "axion_mass_ev": axion_mass_ev,
        "host_mass_msun": host_mass_msun,
        "de_broglie_length_kpc": length_kpc,
        "granule_count": len(lens_models),
    }
    if settings.soliton:
        models, mass_msun = _soliton(context, axion_mass_ev, core_kpc)
        lens_models = models + lens_models
        draw |= {"soliton_core_kpc": core_kpc, "soliton_mass_msun": mass_msun}
    return Substructure(lens_models=lens_models, mean_convergence=0.0, draw=draw)


def _granules(
    settings: FDMSettings,
    context: SubstructureContext,
    rng: np.random.Generator,
    host_mass_msun: float,
    length_kpc: float,
    edge_kpc: float,
) -> LensModels:
    kpc_per_arcsec = context.geometry.kpc_per_arcsec
    length_arcsec = length_kpc / kpc_per_arcsec
    disc_arcsec = min(settings.disc_in_theta_e * context.theta_e_arcsec, context.field_radius_arcsec)
    coherence_areas = (disc_arcsec / length_arcsec) ** 2
    mean_count = min(settings.granules_per_area * coherence_areas, settings.max_granules)
    count = int(rng.poisson(mean_count))
    radius = disc_arcsec * np.sqrt(rng.uniform(size=count))
    azimuth = rng.uniform(0, 2 * np.pi, count)
    sign = rng.choice([-1.0, 1.0], count)
    rings = disc_arcsec * (np.arange(_RINGS) + 0.5) / _RINGS
    deviation = np.sqrt(
        granule_variance(rings * kpc_per_arcsec, edge_kpc, host_mass_msun, length_kpc, context.geometry)
    )
    # Gaussians of integral A thrown at random with density n: variance n A^2 / (pi l^2).
    amplitude = sign * np.interp(radius, rings, deviation) * np.pi * length_arcsec * disc_arcsec / np.sqrt(mean_count)
    x = context.center_x_arcsec + radius * np.cos(azimuth)
    y = context.center_y_arcsec + radius * np.sin(azimuth)
    return [
        ("GAUSSIAN", {"amp": amp, "sigma": length_arcsec / 2, "center_x": one_x, "center_y": one_y})
        for amp, one_x, one_y in zip(amplitude.tolist(), x.tolist(), y.tolist(), strict=True)
    ]


def _soliton(context: SubstructureContext, axion_mass_ev: float, core_kpc: float) -> tuple[LensModels, float]:
    """The soliton, a Gaussian of minus its mass that has no weight beyond the Einstein ring, and that mass."""
    geometry = context.geometry
    a = 2 ** (1 / SOLITON_SLOPE) - 1
    depth_kpc = core_kpc * np.sqrt(np.pi / a) * gamma(SOLITON_SLOPE - 0.5) / gamma(SOLITON_SLOPE)
    surface_msun_arcsec2 = soliton_density_msun_kpc3(axion_mass_ev, core_kpc) * depth_kpc * geometry.kpc_per_arcsec**2
    kappa_0 = float(surface_msun_arcsec2 / geometry.critical_surface_density_msun_arcsec2)
    core_arcsec = core_kpc / geometry.kpc_per_arcsec
    mass_in_critical = np.pi * kappa_0 * core_arcsec**2 / (a * (SOLITON_SLOPE - 1.5))
    centre = {"center_x": context.center_x_arcsec, "center_y": context.center_y_arcsec}
    models: LensModels = [
        ("ULDM", {"kappa_0": kappa_0, "theta_c": core_arcsec, "slope": SOLITON_SLOPE, **centre}),
        ("GAUSSIAN", {"amp": -mass_in_critical, "sigma": context.theta_e_arcsec / 4, **centre}),
    ]
    return models, mass_in_critical * geometry.critical_surface_density_msun_arcsec2
