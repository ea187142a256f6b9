"""Structure of single halos: how concentrated, how far they reach, and what they are as lenstronomy profiles."""

import numpy as np

from ..cosmology import CosmologySettings, LensGeometry

_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(12)


def concentration(mass_msun: np.ndarray, z: float, cosmology: CosmologySettings) -> np.ndarray:
    """Median c_200 of Dutton & Maccio (2014, MNRAS 441, 3359), eq. 8, for masses m_200 in solar masses."""
    norm = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * z**1.21)
    slope = -0.101 + 0.026 * z
    return 10 ** (norm + slope * np.log10(mass_msun * (cosmology.h0_km_s_mpc / 100) / 1e12))


def r200_kpc(mass_msun: np.ndarray, geometry: LensGeometry) -> np.ndarray:
    """Radius inside which the mean density is 200 times the critical density at the lens."""
    return np.cbrt(3 * mass_msun / (800 * np.pi * geometry.critical_density_msun_kpc3))


def nfw_density_msun_kpc3(concentrations: np.ndarray, geometry: LensGeometry) -> np.ndarray:
    """rho_s of NFW halos with these c_200."""
    mass_factor = np.log1p(concentrations) - concentrations / (1 + concentrations)
    return 200 / 3 * geometry.critical_density_msun_kpc3 * concentrations**3 / mass_factor


def truncation_kpc(mass_msun: np.ndarray, host_distance_kpc: np.ndarray) -> np.ndarray:
    """Tidal radius in an isothermal host: r_t = 1.4 kpc (m / 1e7)^(1/3) (r / 50 kpc)^(2/3).

    Cyr-Racine et al. (2016, PRD 94, 043505); r is the distance to the centre of the host.
    """
    return 1.4 * np.cbrt(mass_msun / 1e7) * np.cbrt(host_distance_kpc / 50) ** 2


def tnfw_mass_factor(tau: np.ndarray) -> np.ndarray:
    """Whole mass of a truncated NFW halo in units of 4 pi rho_s r_s^3, tau = r_t / r_s.

    Baltz, Marshall & Oguri (2009, JCAP 01, 015), eq. A.4 at infinity.
    """
    squared = tau**2
    return squared / (squared + 1) ** 2 * ((squared - 1) * np.log(tau) + np.pi * tau - (squared + 1))


def tnfw_projected_share(x: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Share of a truncated NFW halo's whole mass that is seen within r = x r_s of its centre.

    Baltz, Marshall & Oguri (2009), eq. A.11 over eq. A.4.
    """
    off = np.sqrt(np.abs(x**2 - 1)).clip(1e-6)
    f = np.where(x < 1, np.arctanh(np.where(x < 1, off, 0).clip(max=1 - 1e-16)), np.arctan(off)) / off
    squared, root = tau**2, np.sqrt(tau**2 + x**2)
    mass = (squared + 2 * x**2 - 1) * f + tau * np.pi + (squared - 1) * np.log(tau)
    mass = mass + root * ((squared - 1) / tau * np.log(x / (root + tau)) - np.pi)
    return squared / (squared + 1) ** 2 * mass / tnfw_mass_factor(tau)


def share_in_ring(ring: float, disc: float, scale_radius: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Share of truncated NFW halos' mass, thrown at random onto a disc, that is seen inside a ring at its centre.

    (N,) in units of what evenly spread mass would have there: 1 for points, less for halos that reach out of the disc.
    Lengths in any one unit. Of a halo whose centre is somewhere in the disc the ring holds, on average, the integral
    over s of M(<s) times the chord that both circles share when they are s apart, over the disc's area.
    """
    s = max(ring, disc) + min(ring, disc) * _GAUSS_NODES
    chord = np.sqrt((s + disc + ring) * (s + disc - ring) * (s - disc + ring) * (disc + ring - s)) / s
    inside = tnfw_projected_share(s / scale_radius[:, None], tau[:, None])
    return inside @ (_GAUSS_WEIGHTS * chord) / (_GAUSS_WEIGHTS @ chord) * min(1.0, (disc / ring) ** 2)


def tnfw_alpha_rs(
    mass_msun: np.ndarray, scale_radius_kpc: np.ndarray, truncation_kpc: np.ndarray, geometry: LensGeometry
) -> np.ndarray:
    """lenstronomy's `alpha_Rs` (arcsec) of truncated NFW halos with these whole masses.

    That is the deflection of an *untruncated* NFW halo of the same rho_s and r_s at r_s:
    4 rho_s r_s^2 (1 + ln(1/2)) / Sigma_crit.
    """
    scale_arcsec = scale_radius_kpc / geometry.kpc_per_arcsec
    mass_in_critical = mass_msun / geometry.critical_surface_density_msun_arcsec2
    factor = tnfw_mass_factor(truncation_kpc / scale_radius_kpc)
    return (1 + np.log(0.5)) / np.pi * mass_in_critical / (factor * scale_arcsec)
