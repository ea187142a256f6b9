"""Substructure as a Gaussian random field of deflections, with the covariance that its population has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor
from torch.nn import functional

from simulate.generate import SimulateSettings
from simulate.sample import draw_sample, instruments
from simulate.scene import Scene
from simulate.torch_engine.packing import pack_macro
from simulate.torch_engine.ray_shooting import RayGrid, deflection_field, macro_deflection

from .starts import Library

MACRO_MODELS = 2
"""The first lens models of a scene, power law and shear, are its macro-model; the rest is substructure."""
DRAWS_AT_ONCE = 32
LEAST_WEIGHT = 0.05
"""Pixels where light changes less than this, in units of the most, see no deflection."""


@dataclass(frozen=True, eq=False)
class DeflectionModes:
    """The field is a sum of K maps, each times a standard normal number: the strongest ones of the population."""

    maps: Tensor
    """(K,2,h,w) deflection along x and y at the centres of LR pixels, arcsec"""
    captured: float
    """Share that they have of the mean squared deflection, where there is light."""

    def times(self, strength: float) -> "DeflectionModes":
        """The modes of a field that deflects so many times as much."""
        return DeflectionModes(self.maps * strength, self.captured)

    def on_rays(self, rays: int, first: int = 0, last: int | None = None) -> Tensor:
        """(last - first,2,rays,rays) the maps, interpolated."""
        return _interpolate(self.maps[first:last], rays)

    def field(self, amplitudes: Tensor, rays: int) -> Tensor:
        """(B,2,rays,rays) the sum of the maps times `amplitudes` (B,K), arcsec."""
        return _interpolate(torch.einsum("bk,kcyx->bcyx", amplitudes.to(self.maps.dtype), self.maps), rays)


def _interpolate(maps: Tensor, rays: int) -> Tensor:
    """(...,cells,cells) to (...,rays,rays), both of them cells that fill the frame, by cubic splines."""
    matrix = torch.from_numpy(_spline(maps.shape[-1], rays)).to(maps)
    return matrix @ maps @ matrix.T


@lru_cache(maxsize=16)
def _spline(cells: int, rays: int) -> np.ndarray:
    """(rays, cells)"""
    known, wanted = ((np.arange(count) + 0.5) / count for count in (cells, rays))
    return make_interp_spline(known, np.eye(cells), k=3)(wanted)


def substructure_deflection(scenes: Sequence[Scene], grid: RayGrid) -> Tensor:
    """(B,2,rays,rays) what the scenes deflect besides their macro-models: substructure and the sheet against it."""
    total = torch.stack(deflection_field(scenes, grid), 1)
    smooth = [
        replace(one, lens_model_list=one.lens_model_list[:MACRO_MODELS], kwargs_lens=one.kwargs_lens[:MACRO_MODELS])
        for one in scenes
    ]
    return total - torch.stack(macro_deflection(pack_macro(smooth), *grid.xy, len(scenes)), 1)


def draw_deflections(
    settings: SimulateSettings, kind: str, cells: int, count: int, seed: int, device: torch.device
) -> Tensor:
    """(count,2,cells,cells) deflections (arcsec) by the substructure of lenses of this kind, over the whole frame.

    Their indices follow the last sample of the data set, so that none of them is in it.
    """
    hr_instrument, _ = instruments(settings)
    only = settings.model_copy(update={"classes": (kind,)})
    width_arcsec = settings.hr_size * hr_instrument.pixel_scale_arcsec
    grid = RayGrid(cells, width_arcsec / cells, torch.float64, device)
    parts, first = [], settings.total_count
    for start in range(0, count, DRAWS_AT_ONCE):
        indices = range(first + start, first + min(start + DRAWS_AT_ONCE, count))
        parts.append(substructure_deflection([draw_sample(only, seed, one, "train")[0] for one in indices], grid))
    return torch.cat(parts)


def light_changes(library: Library, size: int, cells: int) -> Tensor:
    """(cells,cells) root mean square gradient of the lensed sources of a library, the most is 1: where arcs are.

    `size` is that of the LR images (size,size); averaged over the symmetries of the square.
    """
    sources = library.images[:, 0].view(-1, size, size)
    by_y, by_x = torch.gradient(sources, dim=(1, 2))
    square = functional.interpolate((by_y**2 + by_x**2).mean(0)[None, None], (cells, cells), mode="area")[0, 0]
    square = torch.stack([torch.rot90(one, turn) for one in (square, square.T) for turn in range(4)]).mean(0)
    return (square / square.max()).sqrt()


def find_modes(deflections: Tensor, weight: Tensor, count: int) -> DeflectionModes:
    """The modes of draws (N,2,cells,cells) that have most of the deflection where `weight` (cells,cells) is high.

    Principal components of the weighted deflections (Karhunen-Loeve), with the covariance averaged over the symmetries
    of the square, which a population has; each is continued over the whole frame as it is correlated with the rest.
    """
    region = weight > LEAST_WEIGHT
    weight = weight[region].to(deflections.dtype)
    covariance = deflections.new_zeros(2 * len(weight), 2 * len(weight))
    turned = _symmetries(deflections)
    total = 0
    for one in turned:
        seen = (one[:, :, region] * weight).flatten(1)
        covariance += seen.T @ seen
        total += len(one)
    values, vectors = torch.linalg.eigh(covariance / total)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    maps = deflections.new_zeros(len(values), *deflections.shape[1:])
    for one in turned:
        numbers = (one[:, :, region] * weight).flatten(1) @ vectors
        maps += torch.einsum("nk,ncyx->kcyx", numbers, one)
    maps = maps / (total * values.sqrt()[:, None, None, None])
    return DeflectionModes(maps, float(values.sum() / covariance.diagonal().sum() * total))


def _symmetries(field: Tensor) -> list[Tensor]:
    """The vector field (N,2,n,n) under the 8 symmetries of the square."""
    found = []
    for one in (field, torch.stack([-field[:, 0], field[:, 1]], 1).flip(-1)):
        for _ in range(4):
            found.append(one)
            one = torch.rot90(torch.stack([one[:, 1], -one[:, 0]], 1), 1, (2, 3))
    return found
