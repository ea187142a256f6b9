"""Distances of one lens and source, and the conversions between mass, length and angle that follow from them.

Closed forms for a flat universe of matter and a cosmological constant, so that a lens costs microseconds; they equal
astropy's `FlatLambdaCDM` without radiation to 1e-9.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import Field
from scipy.special import hyp2f1

from .settings import Settings

ARCSEC_RAD = np.pi / 648000
LIGHT_KM_S = 299792.458
PLANCK_EV_S = 4.135667696923859e-15
KPC_KM = 3.0856775814913673e16
GRAVITY_KPC_KM2_S2_MSUN = 1.3271244e11 / KPC_KM
"""G, from the nominal solar mass parameter GM of IAU 2015 resolution B3."""


class CosmologySettings(Settings):
    """A flat Lambda-CDM cosmology."""

    h0_km_s_mpc: float = Field(70.0, gt=0)
    omega_m: float = Field(0.3, gt=0, le=1)

    def comoving_distance_mpc(self, z: float) -> float:
        """Line-of-sight comoving distance, Mpc (Baes, Camps & Van De Putte 2017, MNRAS 468, 927)."""
        dark_over_matter = (1 - self.omega_m) / self.omega_m
        today, then = hyp2f1(1 / 6, 1 / 2, 7 / 6, -dark_over_matter * np.array([1.0, (1 + z) ** -3]))
        return float(2 * LIGHT_KM_S / self.h0_km_s_mpc / np.sqrt(self.omega_m) * (today - then / np.sqrt(1 + z)))

    def critical_density_msun_kpc3(self, z: float) -> float:
        """3 H(z)^2 / (8 pi G), in solar masses per proper cubic kpc."""
        hubble_squared = (self.h0_km_s_mpc / 1e3) ** 2 * (self.omega_m * (1 + z) ** 3 + 1 - self.omega_m)
        return float(3 * hubble_squared / (8 * np.pi * GRAVITY_KPC_KM2_S2_MSUN))

    def omega_m_at(self, z: float) -> float:
        """Matter density at z in units of the critical density then."""
        matter = self.omega_m * (1 + z) ** 3
        return matter / (matter + 1 - self.omega_m)


@dataclass(frozen=True)
class LensGeometry:
    """One lens plane and one source plane; distances are angular-diameter distances (D_ls is not D_s - D_l)."""

    cosmology: CosmologySettings
    z_lens: float
    z_source: float

    @cached_property
    def distance_lens_mpc(self) -> float:
        """Observer to lens."""
        return self.cosmology.comoving_distance_mpc(self.z_lens) / (1 + self.z_lens)

    @cached_property
    def distance_source_mpc(self) -> float:
        """Observer to source."""
        return self.cosmology.comoving_distance_mpc(self.z_source) / (1 + self.z_source)

    @cached_property
    def distance_lens_source_mpc(self) -> float:
        """Lens to source: in a flat universe the comoving distances subtract, the angular-diameter ones do not."""
        return self.distance_source_mpc - self.distance_lens_mpc * (1 + self.z_lens) / (1 + self.z_source)

    @cached_property
    def kpc_per_arcsec(self) -> float:
        """Proper length at the lens that one arcsecond spans."""
        return self.distance_lens_mpc * 1e3 * ARCSEC_RAD

    @cached_property
    def critical_surface_density_msun_arcsec2(self) -> float:
        """Sigma_crit = c^2 D_s / (4 pi G D_l D_ls), in solar masses a square arcsecond of the lens plane."""
        prefactor = LIGHT_KM_S**2 / (4 * np.pi * GRAVITY_KPC_KM2_S2_MSUN)
        distances = self.distance_source_mpc / (self.distance_lens_mpc * self.distance_lens_source_mpc * 1e3)
        return float(prefactor * distances * self.kpc_per_arcsec**2)

    @cached_property
    def critical_density_msun_kpc3(self) -> float:
        """Critical density of the universe at the lens's redshift."""
        return self.cosmology.critical_density_msun_kpc3(self.z_lens)

    def einstein_radius_arcsec(self, mass_msun: float) -> float:
        """Einstein radius of a point mass: pi theta_E^2 Sigma_crit = M."""
        return float(np.sqrt(mass_msun / (np.pi * self.critical_surface_density_msun_arcsec2)))

    def velocity_dispersion_km_s(self, theta_e_arcsec: float) -> float:
        """Of the singular isothermal sphere with this Einstein radius: theta_E = 4 pi (sigma/c)^2 D_ls/D_s."""
        ratio = theta_e_arcsec * ARCSEC_RAD * self.distance_source_mpc / (4 * np.pi * self.distance_lens_source_mpc)
        return float(LIGHT_KM_S * np.sqrt(ratio))
