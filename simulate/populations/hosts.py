"""Where the subhalos of a lens's dark halo are, in projection and along the line of sight."""

from typing import Protocol

import numpy as np
from pydantic import Field

from ..settings import Settings
from .base import SubstructureContext
from .halos import concentration, r200_kpc

_NODES = 256


class HostNFWSettings(Settings):
    """The host's own profile: NFW outside a core, flat inside (Gilman et al. 2020, MNRAS 491, 6077)."""

    host_mass_msun: float = Field(1e13, gt=0)
    core_in_scale_radii: float = Field(0.5, gt=0)


class Host(Protocol):
    """A spatial distribution of subhalos over the disc around the image."""

    median_depth_kpc: float
    """Half the subhalos are this far or farther from the lens plane."""
    excess_in_ring: float
    """Their surface density inside the Einstein ring, in units of that of the disc."""

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y (arcsec) and distance to the centre of the host (kpc), each (count,)."""


class EvenHost:
    """Evenly over the disc and along the line of sight, as near an Einstein ring deep inside a wide core."""

    def __init__(self, core_kpc: float, context: SubstructureContext) -> None:
        self._core_kpc, self._context = core_kpc, context
        self.median_depth_kpc, self.excess_in_ring = core_kpc / 2, 1.0

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Host`."""
        radius = self._context.field_radius_arcsec * np.sqrt(rng.uniform(size=count))
        azimuth = rng.uniform(0, 2 * np.pi, count)
        depth_kpc = rng.uniform(-self._core_kpc, self._core_kpc, count)
        distance_kpc = np.hypot(radius * self._context.geometry.kpc_per_arcsec, depth_kpc)
        return radius * np.cos(azimuth), radius * np.sin(azimuth), distance_kpc


class NFWHost:
    """As the host itself: NFW outside the core, flat inside, out to its r_200.

    Depths are drawn from the density on the axis and positions evenly in the disc; a pair is kept with the probability
    density(there) / density(on the axis). That is exact, and few are thrown away.
    """

    def __init__(self, settings: HostNFWSettings, context: SubstructureContext) -> None:
        geometry, mass = context.geometry, np.array(settings.host_mass_msun)
        self._context = context
        edge_kpc = r200_kpc(mass, geometry)
        self._scale_kpc = edge_kpc / concentration(mass, geometry.z_lens, geometry.cosmology)
        self._core_kpc = settings.core_in_scale_radii * self._scale_kpc
        self._depth_kpc = edge_kpc * np.linspace(0, 1, _NODES) ** 2
        density = self._density(self._depth_kpc)
        cumulative = np.cumsum(np.diff(self._depth_kpc) * (density[1:] + density[:-1]))
        self._cumulative = np.concatenate([[0.0], cumulative / cumulative[-1]])
        self.median_depth_kpc = float(np.interp(0.5, self._cumulative, self._depth_kpc))
        ring, disc = map(self._mean_surface_density, (context.theta_e_arcsec, context.field_radius_arcsec))
        self.excess_in_ring = ring / disc

    def _density(self, distance_kpc: np.ndarray) -> np.ndarray:
        x = np.maximum(distance_kpc, self._core_kpc) / self._scale_kpc
        return 1 / (x * (1 + x) ** 2)

    def _mean_surface_density(self, radius_arcsec: float) -> float:
        """Within the radius: averaged over rings of equal area, the density integrated along the line of sight."""
        rings_kpc = radius_arcsec * self._context.geometry.kpc_per_arcsec * np.sqrt((np.arange(16) + 0.5) / 16)
        density = self._density(np.hypot(rings_kpc[:, None], self._depth_kpc))
        return float(np.mean((density[:, 1:] + density[:, :-1]) @ np.diff(self._depth_kpc)))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Host`."""
        drawn = np.empty((3, 0))
        while (missing := count - drawn.shape[1]) > 0:
            tries = missing + missing // 4 + 8
            radius = self._context.field_radius_arcsec * np.sqrt(rng.uniform(size=tries))
            azimuth = rng.uniform(0, 2 * np.pi, tries)
            depth_kpc = np.interp(rng.uniform(size=tries), self._cumulative, self._depth_kpc)
            distance_kpc = np.hypot(radius * self._context.geometry.kpc_per_arcsec, depth_kpc)
            kept = rng.uniform(size=tries) * self._density(depth_kpc) < self._density(distance_kpc)
            more = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), distance_kpc])[:, kept]
            drawn = np.concatenate([drawn, more[:, :missing]], 1)
        x, y, distance_kpc = drawn
        return x, y, distance_kpc
