"""Light and shape of the arcs, where the truth has them: flux, centroid, ellipticity and half-light radius.

Everything is measured within a mask that the truth gives, the same for every method: the segment in which a catalogue
would measure, without its noise. The Einstein radius is not here, since it takes a fit of the lens to the image; it
belongs beside these scores, as one more array (N,) of `metrics.fidelity_scores`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from simulate.errors import InputError

FAINT_SHARE = 0.1
"""Of an image's peak: where the noise is above it, this is the mask's threshold in its place."""
CANCELLATION = 0.01
"""Share of its absolute value that a sum over an image counts with at least, should its pixels cancel to less."""
BISECTIONS = 20


def arc_mask(truth: Tensor, noise: Tensor, real: Tensor) -> Tensor:
    """Where the arcs are: noiseless `truth` (N,1,H,W), LR `noise` (N,1,h,w), `real` pixels -> bool (N,1,H,W).

    It has the real pixels whose surface brightness is above the 1-sigma noise of the LR pixel that they are in, or, in
    images so faint that this is more than FAINT_SHARE of their peak, above that. Half of the simulated test lenses of
    `quickstart` have more than 98.8 % of their light in it; one whose arcs move by d moves its centroid by 0.96 d.
    Raises `InputError` for a truth without light.
    """
    scale = truth.shape[-1] // noise.shape[-1]
    sigma = functional.interpolate(noise.double(), scale_factor=scale, mode="nearest") / scale**2
    truth = torch.where(real, truth.double(), 0.0)
    peak = truth.amax((1, 2, 3), keepdim=True)
    if not (peak > 0).all():
        row = int((peak <= 0).flatten().int().argmax())
        raise InputError(
            f"sample {row} of the images to score: the truth has no light in its real pixels, expected arcs; "
            "take it out of the data"
        )
    return real & (truth > sigma.minimum(FAINT_SHARE * peak))


@dataclass(frozen=True)
class Shapes:
    """What the light of N images looks like, in pixels."""

    flux: Tensor
    """(N,)"""
    centroid: Tensor
    """(N,2): x and y from the middle of the frame."""
    ellipticity: Tensor
    """(N,2): e1 and e2 as lenstronomy has them, with modulus (1 - q) / (1 + q) for axis ratio q."""
    half_light_radius: Tensor
    """(N,)"""


def light_shapes(images: Tensor, mask: Tensor) -> Shapes:
    """Shapes of the light of (N,1,H,W) within `mask`, a fixed window of weight 1; pixels below zero count as they are.

    The centroid is weighted by flux. The ellipticity is (Qxx - Qyy, 2 Qxy) / (Qxx + Qyy + 2 sqrt(det Q)) of the second
    moments Q about it (Bartelmann & Schneider 2001, Phys. Rep. 340, 291, eq. 4.10): exact for elliptical isophotes, to
    one of which a mask by surface brightness cuts a galaxy. The half-light radius is that of the circle about the
    centroid with half of the flux. Always finite: see CANCELLATION; moments that are no ellipse's count as e = 1.
    """
    light = torch.where(mask, images.double(), 0.0)[:, 0]
    y, x = (torch.arange(size, dtype=light.dtype, device=light.device) - (size - 1) / 2 for size in light.shape[-2:])
    x, y = x[None, None, :], y[None, :, None]

    def total(weight: Tensor) -> Tensor:
        return (light * weight).sum((1, 2), keepdim=True)

    def positive_total(weight: Tensor) -> Tensor:
        least = CANCELLATION * (light.abs() * weight).sum((1, 2), keepdim=True)
        return total(weight).maximum(least).clamp(min=torch.finfo(light.dtype).tiny)

    flux = positive_total(torch.ones_like(x))
    center_x, center_y = total(x) / flux, total(y) / flux
    dx, dy = x - center_x, y - center_y
    squared_radius = dx**2 + dy**2
    trace, stretch, twist = positive_total(squared_radius), total(dx**2 - dy**2), 2 * total(dx * dy)
    determinant = (trace**2 - stretch**2 - twist**2).clamp(min=0) / 4
    ellipticity = torch.cat([stretch, twist], 1)[..., 0] / (trace + 2 * determinant.sqrt())[..., 0]
    ellipticity = ellipticity / ellipticity.norm(dim=1, keepdim=True).clamp(min=1)
    return Shapes(
        flux=light.sum((1, 2)),
        centroid=torch.cat([center_x, center_y], 1)[..., 0],
        ellipticity=ellipticity,
        half_light_radius=_radius_of_flux(light, squared_radius.sqrt(), 0.5 * flux[:, 0, 0]),
    )


def _radius_of_flux(light: Tensor, radius: Tensor, wanted: Tensor) -> Tensor:
    """Radius (N,) of the circle that holds `wanted` flux (N,), by bisection.

    A pixel is in a circle by the share of its width that is: from half a pixel inside to half a pixel outside. That is
    good to 0.3 % of a radius of 5.5 pixels and 0.02 % of 20 (the arcs of `quickstart`), wherever in a pixel the centre.
    """
    low = torch.zeros_like(wanted)
    high = radius.amax((1, 2)) + 0.5
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        held = (light * (middle[:, None, None] - radius + 0.5).clamp(0, 1)).sum((1, 2))
        low, high = torch.where(held < wanted, middle, low), torch.where(held < wanted, high, middle)
    return (low + high) / 2


def shape_scores(images: Tensor, truth: Tensor, mask: Tensor, pixel_scale_arcsec: float) -> dict[str, Tensor]:
    """Shapes of `images` (N,1,H,W) against those of the noiseless `truth` within `mask`: float64 (N,) each.

    "arc_flux_error": relative, signed. "centroid_offset_arcsec": length of the difference. "ellipticity_error": modulus
    of the difference of (e1, e2). "half_light_radius_error": relative, signed.
    """
    found, wanted = light_shapes(images, mask), light_shapes(truth, mask)
    return {
        "arc_flux_error": found.flux / wanted.flux - 1,
        "centroid_offset_arcsec": (found.centroid - wanted.centroid).norm(dim=1) * pixel_scale_arcsec,
        "ellipticity_error": (found.ellipticity - wanted.ellipticity).norm(dim=1),
        "half_light_radius_error": found.half_light_radius / wanted.half_light_radius - 1,
    }
