"""Smooth lens models as pure torch functions: deflection (alpha_x, alpha_y) in arcsec and convergence.

Coordinates and parameters are tensors that broadcast, in lenstronomy's names, units and conventions.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Deflection, MacroProfile


def _elliptical(
    x: Tensor, y: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q x' and y' (major axis along x'), the axis ratio q, and cos and sin of the position angle."""
    ellipticity = torch.hypot(e1, e2).clamp(max=0.9999)
    q = (1 - ellipticity) / (1 + ellipticity)
    angle = 0.5 * torch.atan2(e2, e1)
    cos, sin = angle.cos(), angle.sin()
    dx, dy = x - center_x, y - center_y
    return (q * cos) * dx + (q * sin) * dy, cos * dy - sin * dx, q, cos, sin


def _series_length(ratio: float, accuracy: float) -> int:
    """Terms of a power series in `ratio` < 1 until they fall below `accuracy`."""
    return 1 if ratio < accuracy else max(1, math.ceil(math.log(accuracy) / math.log(ratio)) + 1)


def epl_deflection(
    x: Tensor,
    y: Tensor,
    theta_E: Tensor,
    gamma: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
    *,
    terms: int | None = None,
) -> Deflection:
    """Elliptical power law: Tessore & Metcalf (2015, A&A 580, A79), eq. 22 and 23, with t = gamma - 1.

    The hypergeometric function is its power series in e^(2 i phi), summed by Clenshaw's recurrence: one
    multiplication and one subtraction a term give its real and imaginary part at once. None: as many `terms` as the
    precision asks for, which waits for the device.
    """
    qx, y_minor, q, cos, sin = _elliptical(x, y, e1, e2, center_x, center_y)
    t = gamma - 1
    squared_x, squared_y = qx * qx, y_minor * y_minor
    squared = (squared_x + squared_y).clamp_(min=1e-18)
    cos_2phi = (squared_x - squared_y) / squared

    flattening = (1 - q) / (1 + q)
    if terms is None:
        terms = _series_length(float(flattening.detach().max()), 1e-13 if x.dtype == torch.float64 else 1e-7)
    n = torch.arange(terms, dtype=t.dtype, device=t.device).view(-1, *[1] * t.ndim)
    coefficients = ((t / 2 + n) / (2 - t / 2 + n) * -flattening).cumprod(0).unbind(0)
    twice, current = 2 * cos_2phi, coefficients[-1]
    later = torch.zeros_like(current)
    for coefficient in reversed(coefficients[:-1]):
        current, later = torch.addcmul(coefficient - later, twice, current), current
    real = torch.addcmul(1 - later, cos_2phi, current)
    imaginary = qx * y_minor / squared * current * 2

    # (2 / (1 + q)) (b / R)^t R e^(i phi), turned to the sky's axes; R e^(i phi) is (q x', y')
    size = torch.exp(torch.log(squared) * (-t / 2) + t * torch.log(theta_E * q.sqrt()) + torch.log(2 / (1 + q)))
    real, imaginary = real * size, imaginary * size
    along, across = cos * qx - sin * y_minor, sin * qx + cos * y_minor
    return along * real - across * imaginary, torch.addcmul(along * imaginary, across, real)


def epl_convergence(
    x: Tensor,
    y: Tensor,
    theta_E: Tensor,
    gamma: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """(3 - gamma) / 2 (b / R)^(gamma - 1), b = theta_E sqrt(q) (Tessore & Metcalf 2015, eq. 2)."""
    qx, y_minor, q, _, _ = _elliptical(x, y, e1, e2, center_x, center_y)
    return (3 - gamma) / 2 * (theta_E * q.sqrt() / torch.hypot(qx, y_minor).clamp(min=1e-9)) ** (gamma - 1)


def sie_deflection(
    x: Tensor,
    y: Tensor,
    theta_E: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Deflection:
    """Singular isothermal ellipsoid: the power law of slope 2."""
    return epl_deflection(x, y, theta_E, torch.full_like(theta_E, 2.0), e1, e2, center_x, center_y)


def sie_convergence(
    x: Tensor,
    y: Tensor,
    theta_E: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """theta_E sqrt(q) / (2 R)."""
    return epl_convergence(x, y, theta_E, torch.full_like(theta_E, 2.0), e1, e2, center_x, center_y)


def shear_deflection(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor, ra_0: Tensor, dec_0: Tensor) -> Deflection:
    """External shear about (ra_0, dec_0)."""
    dx, dy = x - ra_0, y - dec_0
    return gamma1 * dx + gamma2 * dy, gamma2 * dx - gamma1 * dy


def shear_convergence(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor, ra_0: Tensor, dec_0: Tensor) -> Tensor:  # noqa: ARG001
    """Zero."""
    return torch.zeros_like(x + gamma1)


def sheet_deflection(x: Tensor, y: Tensor, kappa: Tensor, ra_0: Tensor, dec_0: Tensor) -> Deflection:
    """Uniform convergence: kappa times the position."""
    return kappa * (x - ra_0), kappa * (y - dec_0)


def sheet_convergence(x: Tensor, y: Tensor, kappa: Tensor, ra_0: Tensor, dec_0: Tensor) -> Tensor:  # noqa: ARG001
    """kappa."""
    return kappa + torch.zeros_like(x)


def multipole_deflection(
    x: Tensor, y: Tensor, m: Tensor, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Circular multipole of order m >= 2: Xu et al. (2015, MNRAS 447, 3189), eq. B12."""
    phi = torch.atan2(y - center_y, x - center_x)
    cos_phi, sin_phi, angle = phi.cos(), phi.sin(), m * (phi - phi_m)
    radial, tangential = a_m / (1 - m**2) * angle.cos(), m * a_m / (1 - m**2) * angle.sin()
    return cos_phi * radial + sin_phi * tangential, sin_phi * radial - cos_phi * tangential


def multipole_convergence(
    x: Tensor, y: Tensor, m: Tensor, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """a_m / (2 r) cos(m (phi - phi_m))."""
    dx, dy = x - center_x, y - center_y
    return a_m / (2 * torch.hypot(dx, dy).clamp(min=1e-6)) * (m * (torch.atan2(dy, dx) - phi_m)).cos()


_ELLIPSE = ("e1", "e2", "center_x", "center_y")
MACRO_PROFILES: Mapping[str, MacroProfile] = {
    "CONVERGENCE": MacroProfile(("kappa", "ra_0", "dec_0"), ("kappa",), sheet_deflection, sheet_convergence),
    "EPL": MacroProfile(("theta_E", "gamma", *_ELLIPSE), ("theta_E",), epl_deflection, epl_convergence),
    "MULTIPOLE": MacroProfile(
        ("m", "a_m", "phi_m", "center_x", "center_y"), ("a_m",), multipole_deflection, multipole_convergence
    ),
    "SHEAR": MacroProfile(
        ("gamma1", "gamma2", "ra_0", "dec_0"), ("gamma1", "gamma2"), shear_deflection, shear_convergence
    ),
    "SIE": MacroProfile(("theta_E", *_ELLIPSE), ("theta_E",), sie_deflection, sie_convergence),
}
