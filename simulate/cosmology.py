"""Distances of one lens and source, and the conversions between mass, length and angle that follow from them."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM

from .settings import Settings

ARCSEC_RAD = np.pi / 648000


class CosmologySettings(Settings):
    """A flat Lambda-CDM cosmology."""

    h0_km_s_mpc: float = 70.0
    omega_m: float = 0.3


@lru_cache(maxsize=8)
def _astropy_cosmology(settings: CosmologySettings) -> FlatLambdaCDM:
    return FlatLambdaCDM(H0=settings.h0_km_s_mpc, Om0=settings.omega_m)


@dataclass(frozen=True)
class LensGeometry:
    """One lens plane and one source plane; distances are angular-diameter distances (D_ls is not D_s - D_l)."""

    cosmology: CosmologySettings
    z_lens: float
    z_source: float

    @cached_property
    def _astropy(self) -> FlatLambdaCDM:
        return _astropy_cosmology(self.cosmology)

    @cached_property
    def distance_lens_mpc(self) -> float:
        """Observer to lens."""
        return float(self._astropy.angular_diameter_distance(self.z_lens).to_value(units.Mpc))

    @cached_property
    def distance_source_mpc(self) -> float:
        """Observer to source."""
        return float(self._astropy.angular_diameter_distance(self.z_source).to_value(units.Mpc))

    @cached_property
    def distance_lens_source_mpc(self) -> float:
        """Lens to source: in a flat universe the comoving distances subtract, the angular-diameter ones do not."""
        comoving = self._astropy.comoving_distance([self.z_lens, self.z_source]).to_value(units.Mpc)
        return float((comoving[1] - comoving[0]) / (1 + self.z_source))

    @cached_property
    def kpc_per_arcsec(self) -> float:
        """Proper length at the lens that one arcsecond spans."""
        return self.distance_lens_mpc * 1e3 * ARCSEC_RAD

    @cached_property
    def critical_surface_density_msun_arcsec2(self) -> float:
        """Sigma_crit = c^2 D_s / (4 pi G D_l D_ls), in solar masses a square arcsecond of the lens plane."""
        prefactor = (constants.c**2 / (4 * np.pi * constants.G)).to_value(units.Msun / units.kpc)
        distances = self.distance_source_mpc / (self.distance_lens_mpc * self.distance_lens_source_mpc * 1e3)
        return float(prefactor * distances * self.kpc_per_arcsec**2)

    @cached_property
    def critical_density_msun_kpc3(self) -> float:
        """Critical density of the universe at the lens's redshift."""
        return float(self._astropy.critical_density(self.z_lens).to_value(units.Msun / units.kpc**3))

    def einstein_radius_arcsec(self, mass_msun: float) -> float:
        """Einstein radius of a point mass: pi theta_E^2 Sigma_crit = M."""
        return float(np.sqrt(mass_msun / (np.pi * self.critical_surface_density_msun_arcsec2)))

    def velocity_dispersion_km_s(self, theta_e_arcsec: float) -> float:
        """Of the singular isothermal sphere with this Einstein radius: theta_E = 4 pi (sigma/c)^2 D_ls/D_s."""
        ratio = theta_e_arcsec * ARCSEC_RAD * self.distance_source_mpc / (4 * np.pi * self.distance_lens_source_mpc)
        return float(constants.c.to_value(units.km / units.s) * np.sqrt(ratio))
