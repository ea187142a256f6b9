"""Rays from the image plane to the source plane: deflection fields of batches of scenes on a square grid.

`exact` sums every perturber's closed form; otherwise the perturbers go through `halo_field`, save for those that it
does not fit (`SUMMED_EXACTLY`) or that lie outside its reach.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..profiles.macro import MACRO_PROFILES
from ..profiles.radial import RADIAL_PROFILES
from ..scene import Scene
from .direct_sum import sum_perturbers, sum_planes
from .gaussian_expansion import gaussian_mass_expansion, halo_expansion, make_tiers
from .halo_field import halo_field
from .packing import Perturbers, Slot, pack_macro, pack_perturbers

SUMMED_EXACTLY = ("POINT_MASS", "SIS", "ULDM")
"""Profiles with a singular centre, and the soliton, whose steep edge a sum of Gaussians follows to 1e-4 only."""
FIELD_RADIUS_IN_HALF_WIDTHS = 1.5
"""Perturbers within this radius are in the reach of the fit: the corners of the frame are at 1.41."""


@dataclass(frozen=True)
class RayGrid:
    """Rays at the centres of `rays` x `rays` cells around the origin, `spacing_arcsec` apart."""

    rays: int
    spacing_arcsec: float
    dtype: torch.dtype
    device: torch.device
    elements: int = 2**19
    """Bound on the numbers in one temporary of the field of perturbers."""
    elements_traced: int = 2**15
    """Bound on the numbers in one temporary of what is done ray by ray; what fits a CPU's cache is fastest there."""

    @property
    def half_width_arcsec(self) -> float:
        """From the middle to the edge of the outermost cell."""
        return self.rays * self.spacing_arcsec / 2

    @property
    def axis(self) -> Tensor:
        """(rays,) coordinates in arcsec."""
        positions = (torch.arange(self.rays, dtype=torch.float64) - (self.rays - 1) / 2) * self.spacing_arcsec
        return positions.to(self.device, self.dtype)

    @property
    def xy(self) -> tuple[Tensor, Tensor]:
        """x (1,1,rays) and y (1,rays,1) in arcsec."""
        return self.axis[None, None, :], self.axis[None, :, None]


def deflection_field(scenes: Sequence[Scene], grid: RayGrid, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Deflection (B,rays,rays) in arcsec along x and y, rows along y.

    Of scenes with lens models at several redshifts it is the effective one, theta - beta, always summed exactly. Raises
    `InputError` if a scene has a lens model that the torch engine does not have.
    """
    if any(scene.lens_redshift_list for scene in scenes):
        fields = [
            _planes_field(one, grid) if one.lens_redshift_list else deflection_field([one], grid, exact)
            for one in scenes
        ]
        return torch.cat([one[0] for one in fields]), torch.cat([one[1] for one in fields])
    x, y = macro_deflection(pack_macro(scenes), *grid.xy, len(scenes))
    field = perturber_field(scenes, grid, exact)
    return (x, y) if field is None else (x + field[0], y + field[1])


def _planes_field(scene: Scene, grid: RayGrid) -> tuple[Tensor, Tensor]:
    """In float64: in float32, halos' deflections far from the main lens would lose digits that the next plane sees."""
    x, y = (one.double().expand(1, grid.rays, grid.rays) for one in grid.xy)
    alpha_x, alpha_y = sum_planes(scene, x, y, grid.elements)
    return alpha_x.to(grid.dtype), alpha_y.to(grid.dtype)


def macro_deflection(slots: Sequence[Slot], x: Tensor, y: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Deflection (B,rows,columns) along x and y by the smooth lens models, at x (1,1,columns), y (1,rows,1)."""
    parts: list[tuple[Tensor, Tensor]] = []
    for slot in slots:
        values = torch.as_tensor(slot.values, dtype=x.dtype, device=x.device)
        parameters = (column[:, None, None] for column in values.unbind(1))
        parts.append(MACRO_PROFILES[slot.name].deflection(x, y, *parameters))
    if not parts:
        nothing = torch.zeros(batch, y.shape[1], x.shape[2], dtype=x.dtype, device=x.device)
        return nothing, nothing.clone()
    total_x, total_y = parts[0]
    for part_x, part_y in parts[1:]:
        total_x, total_y = total_x + part_x, total_y + part_y
    return total_x, total_y


def perturber_field(scenes: Sequence[Scene], grid: RayGrid, exact: bool = False) -> Tensor | None:
    """Deflection (2,B,rays,rays) in arcsec along x and y by all perturbers; None if there are none."""
    perturbers = pack_perturbers(scenes)
    if not perturbers:
        return None
    field = torch.zeros(2, len(scenes), grid.rays, grid.rays, dtype=grid.dtype, device=grid.device)
    halos: list[Perturbers] = []
    x, y = (one[0] for one in grid.xy)
    for found in perturbers:
        far = np.hypot(*found.center.T) > FIELD_RADIUS_IN_HALF_WIDTHS * grid.half_width_arcsec
        if exact or found.name in SUMMED_EXACTLY:
            far[:] = True
        for row in np.unique(found.row[far]):
            part_x, part_y = sum_perturbers(_select(found, far & (found.row == row)), x, y, grid.elements)
            field[0, row] += part_x
            field[1, row] += part_y
        if far.all():
            continue
        near = _select(found, ~far)
        if near.name == "GAUSSIAN":
            field += _gaussian_masses(near, len(scenes), grid)
        else:
            halos.append(near)
    if halos:
        field += _halos(halos, len(scenes), grid)
    return field


def _select(perturbers: Perturbers, chosen: np.ndarray) -> Perturbers:
    return Perturbers(perturbers.name, perturbers.row[chosen], perturbers.center[chosen], perturbers.values[chosen])


def _reach_arcsec(grid: RayGrid) -> float:
    """Farthest that a perturber within the reach of the fit can be from a ray."""
    return (FIELD_RADIUS_IN_HALF_WIDTHS + math.sqrt(2)) * grid.half_width_arcsec


def _halos(found: Sequence[Perturbers], batch: int, grid: RayGrid) -> Tensor:
    """The field of perturbers of any smooth profile, by the Gaussian expansions of their deflections."""
    expansion = halo_expansion(_reach_arcsec(grid))
    radii = torch.as_tensor(expansion.radii, device=grid.device)
    weights = []
    for perturbers in found:
        deflection = RADIAL_PROFILES[perturbers.name].deflection
        values = torch.as_tensor(perturbers.values, device=grid.device)
        for part in values.split(max(1, grid.elements // (8 * len(radii)))):  # in float64, and through many temporaries
            weights.append(expansion.weights(deflection(radii, *(one[:, None] for one in part.unbind(1)))))
    rows = np.concatenate([one.row for one in found])
    centers = torch.as_tensor(np.concatenate([one.center for one in found]), device=grid.device)
    table = _by_scene(rows, torch.cat([centers, torch.cat(weights)], 1).to(grid.dtype), batch)
    widths = torch.as_tensor(expansion.widths, dtype=grid.dtype, device=grid.device)
    return _sum_gaussians(table, widths, expansion.widths, grid)


def _gaussian_masses(found: Perturbers, batch: int, grid: RayGrid) -> Tensor:
    """The field of Gaussian mass distributions, whose expansion scales with their own width."""
    narrowest = 2 ** (math.floor(4 * math.log2(found.values[:, 1].min())) / 4)  # rounded, so that expansions are shared
    ratios, weights = gaussian_mass_expansion(_reach_arcsec(grid) / narrowest)
    values = torch.as_tensor(np.concatenate([found.center, found.values], 1), device=grid.device)
    amp, sigma = values[:, 2:3], values[:, 3:4]
    own = amp / (math.pi * sigma**2) * torch.as_tensor(weights, device=grid.device)
    table = _by_scene(found.row, torch.cat([values[:, :2], own, sigma], 1).to(grid.dtype), batch)
    widths = table[..., -1:].clamp(min=narrowest) * torch.as_tensor(ratios, dtype=grid.dtype, device=grid.device)
    return _sum_gaussians(table[..., :-1], widths, narrowest * ratios, grid)


def _sum_gaussians(table: Tensor, widths: Tensor, narrowest: np.ndarray, grid: RayGrid) -> Tensor:
    """The field of perturbers with columns x, y and weights; the tiers are those of the narrowest widths (K,)."""
    perturbers = 2 ** math.ceil(math.log2(table.shape[1]))
    tiers = make_tiers(
        tuple(narrowest.tolist()), grid.rays, grid.half_width_arcsec, perturbers, grid.dtype, grid.device
    )
    return halo_field(tiers, table[..., 0], table[..., 1], widths, table[..., 2:], grid.elements)


def _by_scene(rows: np.ndarray, table: Tensor, batch: int) -> Tensor:
    """(P,C) entries of scenes `rows` (P,) as (batch,N,C), in order; scenes with fewer than N are padded with zeros."""
    if batch == 1:
        return table[None]
    counts = np.bincount(rows, minlength=batch)
    order = np.argsort(rows, kind="stable")
    column = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = torch.as_tensor(rows[order] * counts.max() + column, device=table.device)
    padded = torch.zeros(batch * int(counts.max()), table.shape[1], dtype=table.dtype, device=table.device)
    padded[place] = table[torch.as_tensor(order, device=table.device)]
    return padded.view(batch, -1, table.shape[1])
