"""The deflection of many axisymmetric perturbers on a square grid of rays, as matrix products.

A Gaussian is a product of a function of x and one of y. So the field of all perturbers and all Gaussians of their
expansions together is a product of two matrices, (rows, perturbers * Gaussians) by (perturbers * Gaussians, columns):
what processors do best. Wide Gaussians are evaluated on a small Chebyshev grid and interpolated from there.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .gaussian_expansion import Tier

TILES_PAY_FROM = 1.5e8
"""Multiplications (perturbers * Gaussians * rays) from which on it pays to look for the perturbers near a tile."""
REACH_IN_WIDTHS = 5.0
"""A Gaussian this many standard deviations away is nothing (4e-6 of a narrow one's small share)."""
MOST_TILES = 4
"""Along an axis."""


def halo_field(
    tiers: Sequence[Tier],
    center_x: Tensor,
    center_y: Tensor,
    widths: Tensor,
    weights: Tensor,
    elements: int,
) -> Tensor:
    """Deflection (2,B,rays,rays) in arcsec along x and y, rows along y, of perturbers at (B,N) with weights (B,N,K).

    `widths` (K,) or (B,N,K) in arcsec. A perturber of weight zero adds nothing (padding). No temporary has more than
    about `elements` numbers.
    """
    fields = []
    for tier in tiers:
        rates, part = -1 / (2 * widths**2), slice(tier.first, tier.last)
        products = center_x.shape[1] * (tier.last - tier.first) * len(tier.nodes) ** 2
        if len(center_x) == 1 and tier.to_rays is None and products > TILES_PAY_FROM:
            narrow = widths.flatten(0, -2).amax(0) if widths.ndim > 1 else widths
            fields.append(_field_by_tiles(tier, center_x, center_y, rates, weights, narrow[part].tolist(), elements))
            continue
        field = _field(tier.nodes, tier.nodes, center_x, center_y, rates[..., part], weights[..., part], elements)
        fields.append(field if tier.to_rays is None else tier.to_rays @ field @ tier.to_rays.mT)
    return sum(fields[1:], fields[0])


def _field(
    columns: Tensor, rows: Tensor, center_x: Tensor, center_y: Tensor, rates: Tensor, weights: Tensor, elements: int
) -> Tensor:
    """The field (2,B,rows,columns) of Gaussians exp(rate * distance^2)."""
    batch, count, terms = weights.shape
    field_x = torch.zeros(batch, len(rows), len(columns), dtype=weights.dtype, device=weights.device)
    field_y = torch.zeros_like(field_x)
    step = max(1, elements // (batch * terms * len(columns)))
    for start in range(0, count, step):
        part = slice(start, start + step)
        rate = rates if rates.ndim == 1 else rates[:, part]
        across, distance_x = _gaussians(columns, center_x[:, part], rate)
        along, distance_y = _gaussians(rows, center_y[:, part], rate)
        along *= weights[:, part].mT[..., None]
        field_x = torch.baddbmm(field_x, along.flatten(1, 2).mT, (across * distance_x).flatten(1, 2))
        field_y = torch.baddbmm(field_y, (along * distance_y).flatten(1, 2).mT, across.flatten(1, 2))
    return torch.stack([field_x, field_y])


def _gaussians(nodes: Tensor, center: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    """exp(rate d^2) as (B,K,N,nodes) for distances d (B,1,N,nodes) of the nodes to the centres (B,N), and d.

    Shared rates (K,) halve from each to the next, so most exponentials are squares of others, which are much cheaper.
    The clamps keep numbers normal: denormal ones would make the products many times slower.
    """
    distance = (nodes - center[..., None])[:, None]
    squared = distance**2
    if rates.ndim > 1:
        return (squared * rates.mT[..., None]).clamp_(min=-40).exp_(), distance
    gaussian = squared.new_empty(len(center), len(rates), *squared.shape[2:])
    for number in range(len(rates) - 1, -1, -1):
        if (len(rates) - 1 - number) % 3 == 0:
            torch.mul(squared[:, 0], rates[number], out=gaussian[:, number])
            gaussian[:, number].clamp_(min=-20).exp_()
        else:
            torch.mul(gaussian[:, number + 1], gaussian[:, number + 1], out=gaussian[:, number])
    return gaussian, distance


def _field_by_tiles(
    tier: Tier,
    center_x: Tensor,
    center_y: Tensor,
    rates: Tensor,
    weights: Tensor,
    widths: list[float],
    elements: int,
) -> Tensor:
    """As `_field` for one scene, tile after tile of the rays, each with the perturbers within reach of it alone.

    Gaussians of similar width (K of them, ascending `widths`) share their tiles, which are wider than their reach.
    """
    nodes, size = tier.nodes, len(tier.nodes)
    width = float(nodes[-1] - nodes[0])
    tile_counts = [
        max(1, min(MOST_TILES, 2 ** int(math.log2(width / (2 * REACH_IN_WIDTHS * one)) + 1))) for one in widths
    ]
    total = torch.zeros(2, 1, size, size, dtype=weights.dtype, device=weights.device)
    for count in set(tile_counts):
        first, last = tile_counts.index(count), len(tile_counts) - tile_counts[::-1].index(count)
        part = slice(tier.first + first, tier.first + last)
        reach = REACH_IN_WIDTHS * widths[last - 1]
        spans = [
            (start, min(size, start + math.ceil(size / count))) for start in range(0, size, math.ceil(size / count))
        ]
        for top, bottom in spans:
            rows = nodes[top:bottom]
            in_rows = ((center_y[0] - rows[0] > -reach) & (center_y[0] - rows[-1] < reach)).nonzero()[:, 0]
            x, y, weight = center_x[:, in_rows], center_y[:, in_rows], weights[:, in_rows, part]
            rate = rates[part] if rates.ndim == 1 else rates[:, in_rows, part]
            for left, right in spans:
                columns = nodes[left:right]
                near = ((x[0] - columns[0] > -reach) & (x[0] - columns[-1] < reach)).nonzero()[:, 0]
                own = (x[:, near], y[:, near], rate if rate.ndim == 1 else rate[:, near], weight[:, near])
                total[..., top:bottom, left:right] += _field(columns, rows, *own, elements)
    return total
