"""Subhalos of the lens's dark halo: how many, how massive, and what convergence is expected of them.

Shared by the kinds of dark matter that are made of halos (cdm, wdm, sidm). Bound masses follow dN/dm ~ m^slope between
two limits (-1.9: Springel et al. 2008, MNRAS 391, 1685); a subhalo's density is normalised so that its whole mass, not
the mass inside some radius, is the m that was drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from ..priors import Prior
from ..settings import Settings
from .base import SubstructureContext
from .halos import concentration, r200_kpc, share_in_ring, truncation_kpc
from .hosts import EvenHost, Host, HostNFWSettings, NFWHost

PIVOT_MSUN = 1e8
_AMPLITUDES = ("f_sub", "sigma_sub_kpc2", "mean_count")
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(12)
MassFactor = Callable[[np.ndarray], np.ndarray]


class SubhaloSettings(Settings):
    """Priors of the subhalos. Exactly one of the three amplitudes is given; without any, `f_sub` is 0.01."""

    f_sub: Prior | None = None
    """Share of the macro-model's convergence at the ring (1/2 for an isothermal lens) that is in subhalos."""
    sigma_sub_kpc2: Prior | None = None
    """d^2N/dm dA = sigma_sub / 1e8 (m / 1e8)^slope with A in proper kpc^2: Gilman et al. (2020, MNRAS 491, 6077),
    but for bound masses and without their scaling with the host."""
    mean_count: Prior | None = None
    """Expected number of subhalos in the disc around the image."""
    mass_slope: float = -1.9
    mass_min_msun: float = Field(1e8, gt=0)
    mass_max_msun: float = Field(1e10, gt=0)
    concentration_scatter_dex: float = Field(0.11, ge=0)
    host_core_kpc: float = Field(100.0, gt=0)
    """Half the depth along the line of sight in which subhalos are spread evenly (the host's core)."""
    host_nfw: HostNFWSettings | None = None
    """Given: subhalos follow the host's profile instead of being spread evenly."""

    @model_validator(mode="before")
    @classmethod
    def _default_amplitude(cls, value: Any) -> Any:
        if isinstance(value, dict) and all(value.get(name) is None for name in _AMPLITUDES):
            return {**value, "f_sub": 0.01}
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name: prior for name in _AMPLITUDES if (prior := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_AMPLITUDES)} and set the others to null; found {[*given]}")
        for name, prior in given.items():
            prior.require(name, 0, 1 if name == "f_sub" else np.inf)
        if self.mass_min_msun >= self.mass_max_msun:
            raise ValueError(f"mass_min_msun {self.mass_min_msun:g} must be below mass_max_msun {self.mass_max_msun:g}")
        return self

    @property
    def mass_function(self) -> tuple[float, float, float]:
        """Slope, lowest and highest mass."""
        return self.mass_slope, self.mass_min_msun, self.mass_max_msun


@dataclass(frozen=True)
class Subhalos:
    """What was drawn; each array (N,)."""

    mass_msun: np.ndarray
    concentration: np.ndarray
    scale_radius_kpc: np.ndarray
    truncation_kpc: np.ndarray
    x_arcsec: np.ndarray
    y_arcsec: np.ndarray
    mean_convergence: float
    """As in `Substructure`."""

    def draw(self) -> dict[str, Any]:
        """What the scene keeps of them."""
        return {"subhalo_mass_msun": self.mass_msun.tolist(), "subhalo_concentration": self.concentration.tolist()}


def power_integral(power: float, low: float, high: float) -> float:
    """Integral of m^power from low to high."""
    if abs(power + 1) < 1e-12:
        return float(np.log(high / low))
    return (high ** (power + 1) - low ** (power + 1)) / (power + 1)


def mean_mass_msun(slope: float, low_msun: float, high_msun: float) -> float:
    """Mean mass of dN/dm ~ m^slope between the two masses."""
    return power_integral(slope + 1, low_msun, high_msun) / power_integral(slope, low_msun, high_msun)


def draw_masses_msun(slope: float, low: float, high: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) masses from dN/dm ~ m^slope by inverting its cumulative distribution."""
    share = rng.uniform(size=count)
    power = slope + 1
    if abs(power) < 1e-12:
        return low * (high / low) ** share
    return (low**power + share * (high**power - low**power)) ** (1 / power)


def draw_subhalos(
    settings: SubhaloSettings,
    context: SubstructureContext,
    rng: np.random.Generator,
    survival: MassFactor | None = None,
    concentration_factor: MassFactor | None = None,
) -> Subhalos:
    """Poisson-many subhalos in the disc around the image.

    `survival` maps masses to the share of CDM's subhalos of that mass that exist (at most 1), `concentration_factor` to
    their concentration in units of CDM's. The amplitude is that of the unsuppressed mass function.
    """
    geometry = context.geometry
    mean_count = _mean_count(settings, context, rng)
    masses = draw_masses_msun(*settings.mass_function, int(rng.poisson(mean_count)), rng)
    if survival is not None:
        masses = masses[rng.uniform(size=len(masses)) < survival(masses)]
    host: Host = EvenHost(settings.host_core_kpc, context)
    if settings.host_nfw is not None:
        host = NFWHost(settings.host_nfw, context)
    x, y, distance_kpc = host.draw(len(masses), rng)
    concentrations = concentration(masses, geometry.z_lens, geometry.cosmology)
    concentrations = concentrations * 10 ** (settings.concentration_scatter_dex * rng.standard_normal(len(masses)))
    if concentration_factor is not None:
        concentrations = concentrations * concentration_factor(masses)
    return Subhalos(
        mass_msun=masses,
        concentration=concentrations,
        scale_radius_kpc=r200_kpc(masses, geometry) / concentrations,
        truncation_kpc=truncation_kpc(masses, distance_kpc),
        x_arcsec=x,
        y_arcsec=y,
        mean_convergence=mean_count * _mean_convergence_of_one(settings, context, host, survival),
    )


def _mean_count(settings: SubhaloSettings, context: SubstructureContext, rng: np.random.Generator) -> float:
    """Expected number in the disc, of the unsuppressed mass function."""
    slope, low, high = settings.mass_function
    area_arcsec2 = np.pi * context.field_radius_arcsec**2
    if settings.mean_count is not None:
        return settings.mean_count.draw(rng)
    if settings.sigma_sub_kpc2 is not None:
        per_kpc2 = settings.sigma_sub_kpc2.draw(rng) * power_integral(slope, low / PIVOT_MSUN, high / PIVOT_MSUN)
        return per_kpc2 * area_arcsec2 * context.geometry.kpc_per_arcsec**2
    assert settings.f_sub is not None
    convergence = 0.5 * settings.f_sub.draw(rng)
    total_msun = convergence * context.geometry.critical_surface_density_msun_arcsec2 * area_arcsec2
    return total_msun / mean_mass_msun(slope, low, high)


def _mean_convergence_of_one(
    settings: SubhaloSettings, context: SubstructureContext, host: Host, survival: MassFactor | None
) -> float:
    """Expected convergence inside the Einstein ring of one subhalo of the unsuppressed mass function.

    That is its mass over the disc's, less what reaches out of the disc (4 to 12 %); by quadrature over ln m.
    """
    geometry, ring, disc = context.geometry, context.theta_e_arcsec, context.field_radius_arcsec
    slope, low, high = settings.mass_function
    masses = low * (high / low) ** ((_GAUSS_NODES + 1) / 2)
    mass_shares = _GAUSS_WEIGHTS * masses ** (slope + 2)
    scale_kpc = r200_kpc(masses, geometry) / concentration(masses, geometry.z_lens, geometry.cosmology)
    distance_kpc = np.hypot(host.median_depth_kpc, disc / np.sqrt(2) * geometry.kpc_per_arcsec)
    tau = truncation_kpc(masses, distance_kpc) / scale_kpc

    seen = share_in_ring(ring * geometry.kpc_per_arcsec, disc * geometry.kpc_per_arcsec, scale_kpc, tau)
    if survival is not None:
        seen = seen * survival(masses)
    mass_msun = mean_mass_msun(slope, low, high) * np.average(seen, weights=mass_shares)
    sheet_msun = geometry.critical_surface_density_msun_arcsec2 * np.pi * disc**2
    return float(mass_msun / sheet_msun * host.excess_in_ring)
