"""Light profiles as pure torch functions: surface brightness at x, y, in lenstronomy's names, units and conventions.

Each function takes x, y (arcsec, any shape, float32 or float64, any device) and parameters that are floats or tensors
that broadcast with them, and returns the surface brightness, in the unit of `amp` (per square arcsec where `amp` is a
flux). e1, e2 stretch coordinates and keep areas: radii are product averages of the semi-axes. Inputs are not changed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Number = Any
"""A float, or a tensor that broadcasts with the coordinates."""

SMOOTHING_ARCSEC = 1e-4
"""Sersic profiles are flat inside this radius (lenstronomy: `SersicUtil`, smoothing)."""
SERSIC_REACH = 1000.0
"""Sersic profiles are zero beyond this number of half-light radii (lenstronomy: `max_R_frac`)."""
_ELEMENTS_ON_CPU, _ELEMENTS_ON_DEVICE = 2**16, 2**26
"""Size of each temporary array of `gaussian_sum`: a share of a second-level cache, or 0.25 GB of float32."""


def _at_least(value: Number, floor: float) -> Number:
    return value.clamp_min(floor) if isinstance(value, Tensor) else max(value, floor)


def _stretch(x: Tensor, y: Tensor, e1: Number, e2: Number, center_x: Number, center_y: Number) -> tuple[Tensor, Number]:
    """u^2 + v^2, and what it is to be divided by to be the squared product-average radius (lenstronomy's e1, e2)."""
    dx, dy = x - center_x, y - center_y
    u = (1 - e1) * dx - e2 * dy
    v = (1 + e1) * dy - e2 * dx
    return torch.addcmul(u * u, v, v), _at_least(abs(1 - e1 * e1 - e2 * e2), 1e-6)


def sersic_ellipse(
    x: Tensor,
    y: Tensor,
    amp: Number,
    R_sersic: Number,
    n_sersic: Number,
    e1: Number,
    e2: Number,
    center_x: Number = 0.0,
    center_y: Number = 0.0,
) -> Tensor:
    """amp exp(-b ((R / R_sersic)^(1/n) - 1)): Graham & Driver (2005, PASA 22, 118), eq. 1, b = 1.9992 n - 0.3271.

    The power is that of t = (R / reach)^2, so that a comparison with a constant cuts the profile at its reach; it is
    taken by log2 and exp2, three times as fast as `torch.pow`.
    """
    squared, norm = _stretch(x, y, e1, e2, center_x, center_y)
    b = _at_least(1.9992 * n_sersic - 0.3271, 1e-5)
    reach = SERSIC_REACH * _at_least(R_sersic, SMOOTHING_ARCSEC)
    t = torch.clamp(squared * (1 / (reach * reach * norm)), min=(SMOOTHING_ARCSEC / reach) ** 2)
    minus_power = torch.log2(t) * (-0.5 / n_sersic)
    minus_power = torch.nn.functional.threshold(minus_power, -1e-12, -math.inf)
    exponent = (-math.log2(math.e) * b * SERSIC_REACH ** (1 / n_sersic)) / torch.exp2(minus_power)
    return torch.exp2(exponent) * (amp * math.e**b)


def sersic(
    x: Tensor,
    y: Tensor,
    amp: Number,
    R_sersic: Number,
    n_sersic: Number,
    center_x: Number = 0.0,
    center_y: Number = 0.0,
) -> Tensor:
    """`sersic_ellipse`, round."""
    return sersic_ellipse(x, y, amp, R_sersic, n_sersic, 0.0, 0.0, center_x, center_y)


def gaussian_ellipse(
    x: Tensor,
    y: Tensor,
    amp: Number,
    sigma: Number,
    e1: Number,
    e2: Number,
    center_x: Number = 0.0,
    center_y: Number = 0.0,
) -> Tensor:
    """amp / (2 pi sigma^2) exp(-R^2 / (2 sigma^2)): a Gaussian of total flux `amp`."""
    squared, norm = _stretch(x, y, e1, e2, center_x, center_y)
    return torch.exp(squared * (-0.5 / (sigma * sigma * norm))) * (amp / (2 * math.pi * sigma * sigma))


def gaussian(
    x: Tensor, y: Tensor, amp: Number, sigma: Number, center_x: Number = 0.0, center_y: Number = 0.0
) -> Tensor:
    """`gaussian_ellipse`, round."""
    dx, dy = x - center_x, y - center_y
    squared = torch.addcmul(dx * dx, dy, dy)
    return torch.exp(squared * (-0.5 / (sigma * sigma))) * (amp / (2 * math.pi * sigma * sigma))


def gaussian_sum(
    x: Tensor,
    y: Tensor,
    amp: Number,
    sigma: Number,
    center_x: Number,
    center_y: Number,
    e1: Number = 0.0,
    e2: Number = 0.0,
) -> Tensor:
    """Sum of G Gaussians; parameters (G,) (or floats, for all of them alike). The shape of x.

    Or B sums at once: x (B,...), parameters (B,G); a component of amp 0 and sigma 1 adds nothing. Memory is bounded,
    whatever G and the number of points. On a CPU, points from which every Gaussian is below the rounding error of its
    own peak are left out, which is most points around a small source.
    """
    given = [torch.as_tensor(one, dtype=x.dtype, device=x.device) for one in (amp, sigma, center_x, center_y, e1, e2)]
    amp, sigma, center_x, center_y, e1, e2 = torch.broadcast_tensors(*given)
    if amp.ndim == 2:
        if x.device.type == "cpu":
            rows = zip(x, y, amp, sigma, center_x, center_y, e1, e2, strict=True)
            return torch.stack([gaussian_sum(*row) for row in rows])
        points = (x.reshape(len(x), 1, -1), y.reshape(len(x), 1, -1))
        return _gaussian_sum(*points, amp, sigma, center_x, center_y, e1, e2).reshape(x.shape)
    if x.device.type != "cpu":
        points = (x.reshape(1, -1), y.reshape(1, -1))
        return _gaussian_sum(*points, amp, sigma, center_x, center_y, e1, e2).reshape(x.shape)
    if amp.numel() == 0:
        return torch.zeros_like(x)
    ellipticity = torch.hypot(e1, e2).clamp_max(0.9999)
    reach = sigma * ((1 + ellipticity) / (1 - ellipticity)).sqrt() * math.sqrt(-2 * math.log(torch.finfo(x.dtype).eps))
    low_x, high_x = float((center_x - reach).min()), float((center_x + reach).max())
    low_y, high_y = float((center_y - reach).min()), float((center_y + reach).max())
    near = ((x > low_x) & (x < high_x) & (y > low_y) & (y < high_y)).flatten().nonzero().squeeze(1)
    points = (x.flatten()[near][None], y.flatten()[near][None])
    result = torch.zeros(x.numel(), dtype=x.dtype)
    result[near] = _gaussian_sum(*points, amp, sigma, center_x, center_y, e1, e2)
    return result.reshape(x.shape)


def _gaussian_sum(x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
    """Points (...,1,N) and parameters (...,G) -> (...,N), a chunk of points at a time."""
    amp, sigma, center_x, center_y, e1, e2 = (one[..., None] for one in parameters)
    scale = 1 / (math.sqrt(2) * sigma * (1 - e1 * e1 - e2 * e2).abs().clamp_min(1e-6).sqrt())
    xx, xy, yy = (1 - e1) * scale, -e2 * scale, (1 + e1) * scale
    weight = amp / (2 * math.pi * sigma * sigma)
    elements = _ELEMENTS_ON_CPU if x.device.type == "cpu" else _ELEMENTS_ON_DEVICE
    chunk = max(1, elements // max(1, amp.numel()))
    parts = []
    for some_x, some_y in zip(x.split(chunk, -1), y.split(chunk, -1), strict=True):
        dx, dy = some_x - center_x, some_y - center_y
        u = torch.addcmul(xx * dx, xy, dy)
        v = torch.addcmul(xy * dx, yy, dy)
        exponent = torch.addcmul(u * u, v, v).clamp_max(80.0)  # farther out float32 is denormal, and five times slower
        parts.append((torch.exp(exponent.neg()) * weight).sum(-2))
    return torch.cat(parts, -1)


def interpol(
    x: Tensor,
    y: Tensor,
    image: Number,
    amp: Number = 1.0,
    center_x: Number = 0.0,
    center_y: Number = 0.0,
    phi_G: Number = 0.0,
    scale: Number = 1.0,
) -> Tensor:
    """amp times an image (H,W) of pixels `scale` arcsec wide, interpolated bilinearly towards zero around it.

    `image` is a nested list, an array or a tensor: (H,W), or (B,H,W) for x (B,...). Row 0 is at the smallest y; the
    middle of the image is at the centre, and the image is turned counter-clockwise by phi_G (radians).
    """
    image = torch.as_tensor(image, dtype=x.dtype, device=x.device)
    stack = image if image.ndim == 3 else image[None]
    height, width = stack.shape[-2:]
    phi_G = torch.as_tensor(phi_G, dtype=x.dtype, device=x.device)
    cos, sin = phi_G.cos() / scale, phi_G.sin() / scale
    dx, dy = x - center_x, y - center_y
    column = (cos * dx + sin * dy) * (2 / width)
    row = (cos * dy - sin * dx) * (2 / height)
    grid = torch.stack([column, row], -1).reshape(len(stack), 1, -1, 2)
    found = torch.nn.functional.grid_sample(stack[:, None], grid, "bilinear", "zeros", align_corners=False)
    return amp * found.reshape(x.shape)


LIGHT_PROFILES: Mapping[str, Callable[..., Tensor]] = {
    "GAUSSIAN": gaussian,
    "GAUSSIAN_ELLIPSE": gaussian_ellipse,
    "INTERPOL": interpol,
    "SERSIC": sersic,
    "SERSIC_ELLIPSE": sersic_ellipse,
}


def light_sum(x: Tensor, y: Tensor, names: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> Tensor:
    """Surface brightness of all light models of one scene (float parameters); its Gaussians are summed together."""
    total = torch.zeros_like(x)
    gaussians = [{"e1": 0.0, "e2": 0.0, **one} for name, one in zip(names, kwargs, strict=True) if "GAUSSIAN" in name]
    if gaussians:
        table = {key: torch.tensor([one[key] for one in gaussians], dtype=x.dtype) for key in gaussians[0]}
        total = gaussian_sum(x, y, **table)
    for name, one in zip(names, kwargs, strict=True):
        if "GAUSSIAN" not in name:
            total = total + LIGHT_PROFILES[name](x, y, **one)
    return total
