"""Axisymmetric mass profiles: deflection alpha(r) and convergence kappa(r), in lenstronomy's names and parameters.

Every function takes torch tensors that broadcast, radii in arcsec (> 0) and parameters in lenstronomy's units, and
returns arcsec (deflection, positive towards larger radii) or units of the critical surface density (convergence).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import RadialProfile
from .cored import CORED_PROFILES


def point_mass_deflection(r: Tensor, theta_E: Tensor) -> Tensor:
    """theta_E^2 / r."""
    return theta_E**2 / r


def point_mass_convergence(r: Tensor, theta_E: Tensor) -> Tensor:
    """Zero away from the point."""
    return torch.zeros_like(r * theta_E)


def sis_deflection(r: Tensor, theta_E: Tensor) -> Tensor:
    """Singular isothermal sphere: theta_E everywhere."""
    return theta_E + 0 * r


def sis_convergence(r: Tensor, theta_E: Tensor) -> Tensor:
    """theta_E / (2 r)."""
    return theta_E / (2 * r)


def gaussian_deflection(r: Tensor, amp: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian convergence of integral `amp` (square arcsec): amp / (pi r) (1 - exp(-r^2 / 2 sigma^2))."""
    return amp / math.pi * -torch.expm1(-(r**2) / (2 * sigma**2)) / r


def gaussian_convergence(r: Tensor, amp: Tensor, sigma: Tensor) -> Tensor:
    """amp / (2 pi sigma^2) exp(-r^2 / 2 sigma^2)."""
    return amp / (2 * math.pi * sigma**2) * torch.exp(-(r**2) / (2 * sigma**2))


def nfw_f(x: Tensor) -> Tensor:
    """F(x) of Baltz, Marshall & Oguri (2009, JCAP 01, 015), eq. A.5: arccosh(1/x) / sqrt(1 - x^2), continued past 1."""
    difference = x * x - 1
    root = difference.abs().sqrt()
    inside = torch.log((1 + root) / x)  # arccosh(1/x)
    result = torch.where(difference < 0, inside, torch.atan(root)) / root
    # on both sides of 1, with d = x^2 - 1: 1 - d/3 + d^2/5 - ...
    series = 1 - difference / 3 + difference**2 / 5 - difference**3 / 7
    return torch.where(difference.abs() < 1e-4, series, result)


def _nfw_density(scale_radius: Tensor, alpha_rs: Tensor) -> Tensor:
    """rho_s of an NFW halo in critical surface densities an arcsec, from its deflection at the scale radius."""
    return alpha_rs / (4 * scale_radius**2 * (1 + math.log(0.5)))


def nfw_deflection(r: Tensor, Rs: Tensor, alpha_Rs: Tensor) -> Tensor:
    """4 rho_s Rs^2 [ln(x/2) + F(x)] / x with x = r / Rs (Wright & Brainerd 2000)."""
    x = r / Rs
    return 4 * _nfw_density(Rs, alpha_Rs) * Rs**2 * (torch.log(x / 2) + nfw_f(x)) / x


def nfw_convergence(r: Tensor, Rs: Tensor, alpha_Rs: Tensor) -> Tensor:
    """2 rho_s Rs (1 - F(x)) / (x^2 - 1)."""
    return 2 * _nfw_density(Rs, alpha_Rs) * Rs * _one_minus_f_over(r / Rs)


def _one_minus_f_over(x: Tensor) -> Tensor:
    """(1 - F(x)) / (x^2 - 1), 1/3 at x = 1."""
    difference = x**2 - 1
    near_one = difference.abs() < 1e-4
    series = 1 / 3 - difference / 5 + difference**2 / 7
    return torch.where(near_one, series, (1 - nfw_f(x)) / torch.where(near_one, 1.0, difference))


def tnfw_deflection(r: Tensor, Rs: Tensor, alpha_Rs: Tensor, r_trunc: Tensor) -> Tensor:
    """Truncated NFW: 4 rho_s Rs^2 m(x) / x, m(x) the projected mass of Baltz, Marshall & Oguri (2009), eq. A.11.

    As in lenstronomy, `alpha_Rs` is the deflection at Rs of the halo *without* truncation.
    """
    x, tau = r / Rs, r_trunc / Rs
    x2, tau2 = x**2, tau**2
    root = (tau2 + x2).sqrt()
    log = torch.log(x / (root + tau))
    mass = (tau2 + 1 + 2 * (x2 - 1)) * nfw_f(x) + tau * math.pi + (tau2 - 1) * torch.log(tau)
    mass = mass + root * ((tau2 - 1) / tau * log - math.pi)
    return 4 * _nfw_density(Rs, alpha_Rs) * Rs**2 * tau2 / (tau2 + 1) ** 2 * mass / x


def tnfw_convergence(r: Tensor, Rs: Tensor, alpha_Rs: Tensor, r_trunc: Tensor) -> Tensor:
    """Truncated NFW: Baltz, Marshall & Oguri (2009), eq. A.8."""
    x, tau = r / Rs, r_trunc / Rs
    x2, tau2 = x**2, tau**2
    root = (tau2 + x2).sqrt()
    log = torch.log(x / (root + tau))
    shape = (tau2 + 1) * _one_minus_f_over(x) + 2 * nfw_f(x) - math.pi / root + (tau2 - 1) / (tau * root) * log
    return 2 * _nfw_density(Rs, alpha_Rs) * Rs * tau2 / (tau2 + 1) ** 2 * shape


RADIAL_PROFILES: Mapping[str, RadialProfile] = {
    **CORED_PROFILES,
    "GAUSSIAN": RadialProfile(("amp", "sigma"), gaussian_deflection, gaussian_convergence),
    "NFW": RadialProfile(("Rs", "alpha_Rs"), nfw_deflection, nfw_convergence),
    "POINT_MASS": RadialProfile(("theta_E",), point_mass_deflection, point_mass_convergence),
    "SIS": RadialProfile(("theta_E",), sis_deflection, sis_convergence),
    "TNFW": RadialProfile(("Rs", "alpha_Rs", "r_trunc"), tnfw_deflection, tnfw_convergence),
}
