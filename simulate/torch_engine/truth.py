"""What no telescope sees: convergence, deflection, the source without lensing and the light of the lens."""

import numpy as np
import torch
from torch import Tensor

from ..profiles.light import light_sum
from ..profiles.macro import MACRO_PROFILES
from ..profiles.radial import RADIAL_PROFILES
from ..scene import Scene
from .direct_sum import ELEMENTS, scene_deflection
from .packing import pack_macro, pack_perturbers


def truth_maps(scene: Scene, size: int, pixel_scale_arcsec: float) -> dict[str, np.ndarray]:
    """Each of `shards.TRUTH_UNITS` as (C,size,size) float32: C is 2 (x, y) for the deflection, else 1.

    `convergence_macro` has the sheet that compensates the substructure's mean mass. With lenses at several redshifts,
    convergences are summed over the planes, and the deflection is the effective one, theta - beta.
    """
    axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * pixel_scale_arcsec
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    area = pixel_scale_arcsec**2
    maps = {
        "convergence_macro": _macro_convergence(scene, x, y)[None],
        "convergence_substructure": _substructure_convergence(scene, x, y)[None],
        "deflection": torch.from_numpy(np.stack(scene_deflection(scene, x.numpy(), y.numpy()))),
        "source": area * light_sum(x, y, scene.source_model_list, scene.kwargs_source)[None],
        "lens_light": area * light_sum(x, y, scene.lens_light_model_list, scene.kwargs_lens_light)[None],
    }
    return {name: one.numpy().astype(np.float32) for name, one in maps.items()}


def _macro_convergence(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for slot in pack_macro([scene]):
        total += MACRO_PROFILES[slot.name].convergence(x, y, *torch.from_numpy(slot.values[0]).unbind())
    return total


def _substructure_convergence(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for perturbers in pack_perturbers([scene]):
        table = torch.from_numpy(np.concatenate([perturbers.center, perturbers.values], 1))
        for part in table.split(max(1, ELEMENTS // x.numel())):
            center_x, center_y, *values = (column[:, None, None] for column in part.unbind(1))
            radius = torch.hypot(x - center_x, y - center_y).clamp(min=1e-8)
            total += RADIAL_PROFILES[perturbers.name].convergence(radius, *values).sum(0)
    return total
