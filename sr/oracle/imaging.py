"""Lenses of the parametric model as both instruments see them, and the derivatives of the images, by autodiff.

Profiles act on each ray alone, so their derivatives by all arguments take one backward pass for light and two for a
deflection, with the arguments spread over the rays. Images are linear in the light, so they are derived as they are
made: by PSF and pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from simulate.instruments import PSFSettings
from simulate.profiles.base import Deflection
from simulate.profiles.light import sersic_ellipse
from simulate.profiles.macro import epl_deflection, shear_deflection
from simulate.torch_engine.imaging import observe
from simulate.torch_engine.ray_shooting import RayGrid

from .parameters import Parameters, Slots

ELEMENTS_ON_CPU, ELEMENTS_ON_DEVICE = 2**15, 2**24
"""Rays that go through the profiles together; what fits a CPU's cache is fastest there."""


@dataclass(frozen=True)
class Optics:
    """What looks at a lens in the middle of a square frame: pixels of two instruments and their PSFs."""

    hr_psf: PSFSettings
    lr_psf: PSFSettings
    lr_pixel_scale_arcsec: float
    lr_size: int
    scale: int
    supersampling: int
    """Rays along an axis of an HR pixel; for simulated images the simulator's own number."""


@dataclass(frozen=True, eq=False)
class Linearised:
    """B lenses and how they answer to small changes, on the rays (r,r) of an `Imager`."""

    light: Tensor
    """(B,r,r) flux of each ray's cell."""
    by_argument: Tensor
    """(B,A,r,r) its derivatives by the arguments of the profiles."""
    by_source_place: Tensor
    """(B,2,r,r) its derivatives by where the ray meets the source plane (x, y), per arcsec."""
    slot_jacobian: Tensor
    """(B,A,P) derivatives of the arguments by the parameters."""

    def derivatives(self, look: Callable[[Tensor], Tensor]) -> Tensor:
        """(B,N,P) derivatives of the N pixels of `look(light)`, an image, by the parameters."""
        return look(self.by_argument).flatten(2).mT @ self.slot_jacobian


@dataclass(frozen=True)
class Imager:
    """Images of the parametric model on a grid of rays, `rays_per_pixel` along each axis of an LR pixel.

    Derivatives of deflections are computed on a grid `deflection_step` times as coarse and interpolated, since they
    are smooth; light and its derivatives never are.
    """

    parameters: Parameters
    optics: Optics
    rays_per_pixel: int
    deflection_step: int
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def grid(self) -> RayGrid:
        """The rays."""
        spacing = self.optics.lr_pixel_scale_arcsec / self.rays_per_pixel
        return RayGrid(self.optics.lr_size * self.rays_per_pixel, spacing, self.dtype, self.device)

    def light(self, u: Tensor, field: Tensor | None = None) -> Tensor:
        """(B,r,r) flux of each ray's cell, from u (B,P); `field` (B,2,r,r) arcsec deflects besides the macro-model."""
        return self.components(u, field).sum(1)

    def components(self, u: Tensor, field: Tensor | None = None) -> Tensor:
        """(B,C,r,r) the light of the source and, if it shines, that of the lens."""
        slots = self.parameters.slots(u.to(self.dtype))
        rays = self.grid.rays
        count = 1 if slots.lens_light is None else 2
        found = torch.empty(len(u), count, rays, rays, dtype=self.dtype, device=self.device)
        for rows in self._rows(len(u), rays):
            x, y, source_x, source_y = self._trace(slots, rows, field)
            found[:, 0, rows] = _sersic(source_x, source_y, slots.source)
            if slots.lens_light is not None:
                found[:, 1, rows] = _sersic(x, y, slots.lens_light)
        return found * self.grid.spacing_arcsec**2

    def linearise(self, u: Tensor, field: Tensor | None = None) -> Linearised:
        """The light of `light`, and its derivatives."""
        slots, jacobian = self.parameters.slots(u.to(self.dtype)), self.parameters.slot_jacobian(u).to(self.dtype)
        batch, rays = len(u), self.grid.rays
        total = torch.empty(batch, rays, rays, dtype=self.dtype, device=self.device)
        columns = torch.empty(batch, jacobian.shape[1], rays, rays, dtype=self.dtype, device=self.device)
        gradient = torch.empty(batch, 2, rays, rays, dtype=self.dtype, device=self.device)
        by_macro = self._deflection_derivatives(slots)
        macro = by_macro.shape[2]
        for rows in self._rows(batch, rays):
            x, y, source_x, source_y = self._trace(slots, rows, field)
            value, by_place, by_source = _sersic_derivatives(source_x, source_y, slots.source)
            gradient[:, :, rows] = by_place
            moved = by_place[:, 0, None] * by_macro[:, 0, :, rows]
            columns[:, :macro, rows] = -moved.addcmul_(by_place[:, 1, None], by_macro[:, 1, :, rows])
            columns[:, macro : macro + 7, rows] = by_source
            if slots.lens_light is not None:
                own, _, by_light = _sersic_derivatives(x, y, slots.lens_light)
                value = value + own
                columns[:, macro + 7 :, rows] = by_light
            total[:, rows] = value
        area = self.grid.spacing_arcsec**2
        return Linearised(total * area, columns * area, gradient * area, jacobian)

    def lr(self, light: Tensor) -> Tensor:
        """(...,h,w) flux in LR pixels of light (...,r,r) on the rays."""
        return self._observe(light, self.optics.lr_psf, self.rays_per_pixel)

    def hr(self, light: Tensor) -> Tensor:
        """(...,H,W) flux in HR pixels; `rays_per_pixel` is to be a multiple of the scale."""
        return self._observe(light, self.optics.hr_psf, self.rays_per_pixel // self.optics.scale)

    def _observe(self, light: Tensor, psf: PSFSettings, factor: int) -> Tensor:
        images = observe(light.reshape(-1, *light.shape[-2:]), psf, self.grid.spacing_arcsec, factor)
        return images.reshape(*light.shape[:-2], *images.shape[-2:])

    def _rows(self, batch: int, rays: int) -> list[slice]:
        elements = ELEMENTS_ON_CPU if self.device.type == "cpu" else ELEMENTS_ON_DEVICE
        step = max(1, elements // (batch * rays))
        return [slice(start, start + step) for start in range(0, rays, step)]

    def _trace(self, slots: Slots, rows: slice, field: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x and y of the rays in these rows, and where they meet the source plane, each (B,rows,r)."""
        x, y = self.grid.xy
        y = y[:, rows]
        alpha_x, alpha_y = epl_deflection(x, y, *_columns(slots.power_law))
        shear_x, shear_y = _shear(x, y, *_columns(slots.shear))
        alpha_x, alpha_y = alpha_x + shear_x, alpha_y + shear_y
        if field is not None:
            alpha_x, alpha_y = alpha_x + field[:, 0, rows], alpha_y + field[:, 1, rows]
        return x.expand_as(alpha_x), y.expand_as(alpha_x), x - alpha_x, y - alpha_y

    def _deflection_derivatives(self, slots: Slots) -> Tensor:
        """(B,2,M,r,r) derivatives of the deflection along x and y by the arguments of power law and shear."""
        rays = self.grid.rays // self.deflection_step
        grid = RayGrid(rays, self.grid.spacing_arcsec * self.deflection_step, self.dtype, self.device)
        x, y = grid.xy
        parts = []
        for rows in self._rows(len(slots.shear), rays):
            found = [
                _profile_derivatives(profile, x, y[:, rows], values)
                for profile, values in ((epl_deflection, slots.power_law), (_shear, slots.shear))
            ]
            parts.append(torch.cat(found, 2))
        derivatives = torch.cat(parts, 3)
        if self.deflection_step == 1:
            return derivatives
        size = (self.grid.rays, self.grid.rays)
        fine = functional.interpolate(derivatives.flatten(1, 2), size, mode="bilinear", align_corners=False)
        return fine.unflatten(1, derivatives.shape[1:3])


def _columns(values: Tensor) -> Sequence[Tensor]:
    return values[:, :, None, None].unbind(1)


def _shear(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor) -> Deflection:
    zero = torch.zeros_like(gamma1)
    return shear_deflection(x, y, gamma1, gamma2, zero, zero)


def _sersic(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
    return sersic_ellipse(x, y, *_columns(values))


def _sersic_derivatives(x: Tensor, y: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Surface brightness (B,...), its derivatives by place (B,2,...) and by arguments (B,7,...).

    It is proportional to its amplitude, and moves with its centre: these need no pass of their own.
    """
    amp, *shape, center_x, center_y = _columns(values)
    with torch.enable_grad():
        spread = [one.detach().requires_grad_() for one in (x, y, *(one.expand_as(x) for one in shape))]
        place_x, place_y, radius, index, e1, e2 = spread
        light = sersic_ellipse(place_x, place_y, amp, radius, index, e1, e2, center_x, center_y)
        by_x, by_y, *by_shape = torch.autograd.grad(light.sum(), spread)
    light = light.detach()
    by_place = torch.stack([by_x, by_y], 1)
    return light, by_place, torch.cat([(light / amp)[:, None], torch.stack(by_shape, 1), -by_place], 1)


def _profile_derivatives(profile: Callable[..., Deflection], x: Tensor, y: Tensor, values: Tensor) -> Tensor:
    """(B,2,arguments,rows,columns) at x (1,1,columns), y (1,rows,1)."""
    with torch.enable_grad():
        shape = (len(values), y.shape[1], x.shape[2])
        spread = [one.expand(shape).detach().requires_grad_() for one in _columns(values)]
        alpha_x, alpha_y = profile(x, y, *spread)
        by_x = torch.autograd.grad(alpha_x.sum(), spread, retain_graph=True)
        by_y = torch.autograd.grad(alpha_y.sum(), spread)
    return torch.stack([torch.stack(by_x, 1), torch.stack(by_y, 1)], 1)
