"""Batches of scenes as two instruments see them, before noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..instruments import Instrument, PSFSettings
from ..profiles.light import LIGHT_PROFILES, light_sum
from ..scene import Scene
from ..seeing import under_seeing
from .imaging import observe, observe_spectrum, padded_size, point_spectrum
from .packing import LightModels, Slot, light_slots, pack_macro
from .ray_shooting import RayGrid, deflection_field, macro_deflection, perturber_field


@dataclass(frozen=True)
class View:
    """How the engine looks at scenes: two instruments that share their frame, and rays on a grid."""

    hr_instrument: Instrument
    lr_instrument: Instrument
    hr_size: int
    scale: int
    supersampling: int

    def grid(self, dtype: torch.dtype, device: torch.device) -> RayGrid:
        """`supersampling` rays along each axis of an HR pixel."""
        spacing = self.hr_instrument.pixel_scale_arcsec / self.supersampling
        budget = (2**19, 2**15) if device.type == "cpu" else (2**27, 2**26)
        return RayGrid(self.hr_size * self.supersampling, spacing, dtype, device, *budget)


def render_batch(
    scenes: Sequence[Scene], view: View, dtype: torch.dtype, device: torch.device, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Noiseless HR (B,H,W) and LR (B,h,w) images in nJy per pixel.

    `exact` sums the closed forms of all perturbers. Raises `InputError` for a model that this engine does not have.
    """
    grid = view.grid(dtype, device)
    light = surface_brightness(scenes, grid, exact) * grid.spacing_arcsec**2
    hr_psfs = [view.hr_instrument.psf] * len(scenes)
    sides = ((hr_psfs, view.supersampling), (lr_psfs(scenes, view), view.supersampling * view.scale))
    hr, lr = (_observe_each(light, psfs, grid.spacing_arcsec, factor) for psfs, factor in sides)
    for row, scene in enumerate(scenes):
        if scene.kwargs_ps:
            for images, (psfs, factor) in zip((hr, lr), sides, strict=True):
                images[row] += _points(scene, grid, psfs[row], factor)
    return hr, lr


def lr_psfs(scenes: Sequence[Scene], view: View) -> list[PSFSettings]:
    """The LR PSF of each scene: the instrument's, or one of the scene's own seeing."""
    return [under_seeing(view.lr_instrument, scene).psf for scene in scenes]


def _observe_each(light: Tensor, psfs: Sequence[PSFSettings], spacing_arcsec: float, factor: int) -> Tensor:
    """`observe` with a PSF for each of the batch; all at once where they share one."""
    if all(psf == psfs[0] for psf in psfs):
        return observe(light, psfs[0], spacing_arcsec, factor)
    return torch.cat([observe(one[None], psf, spacing_arcsec, factor) for one, psf in zip(light, psfs, strict=True)])


def surface_brightness(scenes: Sequence[Scene], grid: RayGrid, exact: bool = False) -> Tensor:
    """(B,rays,rays) light of the lensed sources and the lenses, in nJy per square arcsecond."""
    if any(scene.lens_redshift_list for scene in scenes):  # their deflection comes in one piece
        return torch.cat([_trace([one], grid, [], torch.stack(deflection_field([one], grid, exact))) for one in scenes])
    return _trace(scenes, grid, pack_macro(scenes), perturber_field(scenes, grid, exact))


def _trace(scenes: Sequence[Scene], grid: RayGrid, macro: Sequence[Slot], field: Tensor | None) -> Tensor:
    """Light along rays deflected by `macro` and, besides, by `field` (2,B,rays,rays).

    Rows of rays are traced some at a time, so that temporaries fit into the cache of a CPU and the memory of a GPU.
    """
    x, y = grid.xy
    total = torch.zeros(len(scenes), grid.rays, grid.rays, dtype=grid.dtype, device=grid.device)
    sources, lights = _by_scaling(scenes), LightBatch.of([_lens_light(scene) for scene in scenes])
    step = max(1, grid.elements_traced // (len(scenes) * grid.rays))
    for start in range(0, grid.rays, step):
        rows = slice(start, start + step)
        alpha_x, alpha_y = macro_deflection(macro, x, y[:, rows], len(scenes))
        if field is not None:
            alpha_x += field[0, :, rows]
            alpha_y += field[1, :, rows]
        for scaling, models in sources.items():
            scaled_x, scaled_y = (alpha_x, alpha_y) if scaling == 1 else (scaling * alpha_x, scaling * alpha_y)
            models.add_to(total[:, rows], x - scaled_x, y[:, rows] - scaled_y)
        if lights:
            lights.add_to(total[:, rows], x.expand_as(alpha_x), y[:, rows].expand_as(alpha_y))
    return total


def _lens_light(scene: Scene) -> LightModels:
    return list(zip(scene.lens_light_model_list, scene.kwargs_lens_light, strict=True))


def _by_scaling(scenes: Sequence[Scene]) -> dict[float, "LightBatch"]:
    """The sources of the scenes, by the factor on their deflection."""
    models: dict[float, list[LightModels]] = {}
    for row, scene in enumerate(scenes):
        factors = scene.source_deflection_scaling or [1.0] * len(scene.source_model_list)
        for factor, name, kwargs in zip(factors, scene.source_model_list, scene.kwargs_source, strict=True):
            models.setdefault(factor, [[] for _ in scenes])[row].append((name, kwargs))
    return {factor: LightBatch.of(models[factor]) for factor in sorted(models)}


@dataclass(frozen=True)
class LightBatch:
    """Light models of B scenes: `slots` are evaluated for all scenes at once, `rest` scene by scene."""

    slots: list[Slot]
    rest: list[LightModels]

    @classmethod
    def of(cls, models: Sequence[LightModels]) -> "LightBatch":
        """Raises `InputError` for a model that the torch engine does not have."""
        unknown = sorted({name for of_scene in models for name, _ in of_scene} - set(LIGHT_PROFILES))
        if unknown:
            known = ", ".join(LIGHT_PROFILES)
            raise InputError(
                f"light model {unknown[0]!r} is not in the torch engine ({known}); use --engine lenstronomy"
            )
        return cls(*light_slots(models))

    def __bool__(self) -> bool:
        return bool(self.slots) or any(self.rest)

    def add_to(self, total: Tensor, x: Tensor, y: Tensor) -> None:
        """Add the surface brightness of each scene at its own coordinates (B,rows,columns), in place."""
        for slot in self.slots:
            values = torch.as_tensor(slot.values, dtype=x.dtype, device=x.device)
            parameters = dict(zip(slot.parameters, (one[:, None, None] for one in values.unbind(1)), strict=True))
            total += LIGHT_PROFILES[slot.name](x, y, **parameters)
        for row, of_scene in enumerate(self.rest):
            if of_scene:
                names, kwargs = zip(*of_scene, strict=True)
                total[row] += light_sum(x[row], y[row], names, kwargs)


def _points(scene: Scene, grid: RayGrid, psf: PSFSettings, factor: int) -> Tensor:
    """(rays/factor, rays/factor) flux of the images of point sources that lie in the frame."""
    if any(name != "LENSED_POSITION" for name in scene.point_source_model_list):
        raise InputError(f"point sources must be LENSED_POSITION, found {scene.point_source_model_list}")
    table = np.concatenate(
        [np.array([one["ra_image"], one["dec_image"], one["point_amp"]], float) for one in scene.kwargs_ps], 1
    )
    inside = (np.abs(table[:2]) < grid.half_width_arcsec).all(0)
    x, y, flux = torch.as_tensor(table[:, inside], dtype=grid.dtype, device=grid.device)
    middle, padded = (grid.rays - 1) / 2, padded_size(psf, grid.rays, grid.spacing_arcsec)
    spectrum = point_spectrum(x / grid.spacing_arcsec + middle, y / grid.spacing_arcsec + middle, flux, padded)
    return observe_spectrum(spectrum[None], psf, grid.rays, grid.spacing_arcsec, factor, grid.dtype)[0]
