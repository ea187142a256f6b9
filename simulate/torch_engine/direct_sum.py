"""The closed forms of lens models at any points, summed one after the other: exact, and slow for many perturbers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..cosmology import CosmologySettings
from ..profiles.macro import MACRO_PROFILES
from ..profiles.radial import RADIAL_PROFILES
from ..scene import Scene
from .packing import Perturbers, pack_macro, pack_perturbers

ELEMENTS = 2**19


def sum_perturbers(perturbers: Perturbers, x: Tensor, y: Tensor, elements: int = ELEMENTS) -> tuple[Tensor, Tensor]:
    """Deflection along x and y by all of the perturbers, at points x, y that broadcast (arcsec)."""
    shape = torch.broadcast_shapes(x.shape, y.shape)
    total_x = torch.zeros(shape, dtype=x.dtype, device=x.device)
    total_y = torch.zeros_like(total_x)
    deflection = RADIAL_PROFILES[perturbers.name].deflection
    table = torch.as_tensor(np.concatenate([perturbers.center, perturbers.values], 1), dtype=x.dtype, device=x.device)
    for part in table.split(max(1, elements // max(1, total_x.numel()))):
        center_x, center_y, *values = (column.reshape(-1, *[1] * len(shape)) for column in part.unbind(1))
        distance_x, distance_y = x - center_x, y - center_y
        radius = torch.hypot(distance_x, distance_y).clamp(min=1e-8)
        ratio = deflection(radius, *values) / radius
        total_x += (ratio * distance_x).sum(0)
        total_y += (ratio * distance_y).sum(0)
    return total_x, total_y


def sum_models(scene: Scene, x: Tensor, y: Tensor, elements: int = ELEMENTS) -> tuple[Tensor, Tensor]:
    """Deflection along x and y by all lens models of a scene, taken to be in one plane, at points x, y (arcsec)."""
    total_x, total_y = torch.zeros_like(x), torch.zeros_like(y)
    for slot in pack_macro([scene]):
        values = torch.as_tensor(slot.values[0], dtype=x.dtype, device=x.device).unbind()
        part_x, part_y = MACRO_PROFILES[slot.name].deflection(x, y, *values)
        total_x, total_y = total_x + part_x, total_y + part_y
    for perturbers in pack_perturbers([scene]):
        part_x, part_y = sum_perturbers(perturbers, x, y, elements)
        total_x, total_y = total_x + part_x, total_y + part_y
    return total_x, total_y


def sum_planes(scene: Scene, x: Tensor, y: Tensor, elements: int = ELEMENTS) -> tuple[Tensor, Tensor]:
    """Effective deflection x - beta_x, y - beta_y of a scene with lens models at several redshifts (arcsec).

    The multi-plane equation (Schneider, Ehlers & Falco 1992, eq. 9.7), in comoving transverse distances; reduced
    deflections are scaled to their own plane by D_s / D_ls, as in lenstronomy.
    """
    cosmology = CosmologySettings(h0_km_s_mpc=scene.cosmology["H0"], omega_m=scene.cosmology["Om0"])
    to_source = cosmology.comoving_distance_mpc(scene.z_source)
    position_x, position_y, slope_x, slope_y = torch.zeros_like(x), torch.zeros_like(y), x, y
    before = 0.0
    redshifts = np.array(scene.lens_redshift_list)
    for redshift in np.unique(redshifts[redshifts < scene.z_source]):
        here = cosmology.comoving_distance_mpc(float(redshift))
        position_x = position_x + slope_x * (here - before)
        position_y = position_y + slope_y * (here - before)
        plane = _models_at(scene, np.flatnonzero(redshifts == redshift))
        alpha_x, alpha_y = sum_models(plane, position_x / here, position_y / here, elements)
        physical = to_source / (to_source - here)
        slope_x, slope_y = slope_x - physical * alpha_x, slope_y - physical * alpha_y
        before = here
    position_x = position_x + slope_x * (to_source - before)
    position_y = position_y + slope_y * (to_source - before)
    return x - position_x / to_source, y - position_y / to_source


def _models_at(scene: Scene, chosen: Sequence[int] | np.ndarray) -> Scene:
    return replace(
        scene,
        lens_model_list=[scene.lens_model_list[one] for one in chosen],
        kwargs_lens=[scene.kwargs_lens[one] for one in chosen],
        lens_redshift_list=[],
    )


def scene_deflection(scene: Scene, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deflection (arcsec) along x and y by all of a scene's mass at points x, y of any one shape, in float64."""
    deflect = sum_planes if scene.lens_redshift_list else sum_models
    found = deflect(scene, torch.from_numpy(np.asarray(x, float)), torch.from_numpy(np.asarray(y, float)))
    return found[0].numpy(), found[1].numpy()
