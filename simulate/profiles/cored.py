"""Axisymmetric mass profiles with a core: the soliton of fuzzy dark matter and the cored, truncated pseudo-NFW halo.

As in `radial`: lenstronomy's names and parameters; radii in arcsec (> 0), torch tensors that broadcast.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import RadialProfile


def uldm_deflection(r: Tensor, kappa_0: Tensor, theta_c: Tensor, slope: Tensor) -> Tensor:
    """Soliton rho ~ (1 + a (r / theta_c)^2)^(-slope), a = 2^(1/slope) - 1; 8 is the ground state (Schive et al. 2014).

    2 kappa_0 theta_c^2 / ((2 slope - 3) a r) [1 - (1 + a r^2 / theta_c^2)^(3/2 - slope)].
    """
    a = torch.expm1(math.log(2) / slope)
    fall = -torch.expm1((1.5 - slope) * torch.log1p(a * (r / theta_c) ** 2))
    return kappa_0 * theta_c**2 / ((slope - 1.5) * a * r) * fall


def uldm_convergence(r: Tensor, kappa_0: Tensor, theta_c: Tensor, slope: Tensor) -> Tensor:
    """kappa_0 (1 + a r^2 / theta_c^2)^(1/2 - slope)."""
    a = torch.expm1(math.log(2) / slope)
    return kappa_0 * torch.exp((0.5 - slope) * torch.log1p(a * (r / theta_c) ** 2))


def _h(t: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """artanh(u) / u with u^2 = (t^2 - b^2) / (t^2 + x^2); arctan where t < b, and smooth in between."""
    top, bottom, core = t**2 - b**2, t**2 + x**2, b**2 + x**2
    squared = top / bottom
    small = squared.abs() < 1e-3
    u = torch.where(small, 1.0, squared.abs()).sqrt()
    above = torch.log((1 + torch.where(top > 0, u, 0.0)) * (bottom / core).sqrt())
    series = 1 + squared * (1 / 3 + squared * (1 / 5 + squared * (1 / 7 + squared * (1 / 9 + squared / 11))))
    return torch.where(small, series, torch.where(top > 0, above, torch.atan(u)) / u)


def _shape(Rs: Tensor, r_core: Tensor, r_trunc: Tensor) -> tuple[Tensor, Tensor]:
    """r_core and r_trunc in units of Rs, off the latter's 1, where the closed forms are 0 / 0.

    In float64 whatever comes in, for near there they are differences of almost equal numbers.
    """
    b, tau = r_core.double() / Rs.double(), r_trunc.double() / Rs.double()
    return b, torch.where((tau - 1).abs() < 1e-5, 1 + 1e-5, tau)


def _tnfwc_mass(x: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Projected mass within x in units of 4 pi rho_0 Rs^3."""
    one, zero = torch.ones_like(tau), torch.zeros_like(x)
    difference = (_h(one, b, x) - _h(one, b, zero)) - (_h(tau, b, x) - _h(tau, b, zero))
    return tau**2 / (tau**2 - 1) * difference


def tnfwc_deflection(r: Tensor, Rs: Tensor, alpha_Rs: Tensor, r_core: Tensor, r_trunc: Tensor) -> Tensor:
    """rho = rho_0 Rs^3 / [(r^2 + r_core^2)^(1/2) (r^2 + Rs^2)] r_trunc^2 / (r^2 + r_trunc^2).

    `alpha_Rs` is the deflection at Rs, core and truncation included (Gilman et al. 2021, MNRAS 507, 2432).
    """
    b, tau = _shape(Rs, r_core, r_trunc)
    x = r.double() / Rs
    return alpha_Rs * (_tnfwc_mass(x, b, tau) / (x * _tnfwc_mass(torch.ones_like(tau), b, tau))).to(r.dtype)


def tnfwc_convergence(r: Tensor, Rs: Tensor, alpha_Rs: Tensor, r_core: Tensor, r_trunc: Tensor) -> Tensor:
    """See `tnfwc_deflection`."""
    b, tau = _shape(Rs, r_core, r_trunc)
    x, one = r.double() / Rs, torch.ones_like(tau)
    surface = tau**2 / (tau**2 - 1) * (_h(one, b, x) / (1 + x**2) - _h(tau, b, x) / (tau**2 + x**2))
    return alpha_Rs / (2 * Rs) * (surface / _tnfwc_mass(one, b, tau)).to(r.dtype)


CORED_PROFILES: Mapping[str, RadialProfile] = {
    "TNFWC": RadialProfile(("Rs", "alpha_Rs", "r_core", "r_trunc"), tnfwc_deflection, tnfwc_convergence),
    "ULDM": RadialProfile(("kappa_0", "theta_c", "slope"), uldm_deflection, uldm_convergence),
}
