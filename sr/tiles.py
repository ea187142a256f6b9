"""Overlapping tiles: an image of any size through a network, in bounded memory and without seams."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from simulate.progress import progress_bar

from .trained_model import TrainedModel

MARGIN = 16
"""LR pixels at the inner edges of a tile that are thrown away: they lack what lies beyond the edge."""
BLEND = 8
"""LR pixels over which one tile passes into the next."""
MINIMUM_TILE = 64

Window = tuple[slice, slice]


def tile_starts(size: int, tile: int) -> list[int]:
    """First pixels of tiles that cover `size` pixels evenly and overlap by at least 2 MARGIN + BLEND."""
    if tile >= size:
        return [0]
    count = math.ceil((size - tile) / (tile - 2 * MARGIN - BLEND)) + 1
    return [round(number * (size - tile) / (count - 1)) for number in range(count)]


def tile_weights(size: int, tile: int, scale: int) -> np.ndarray:
    """Weight of each tile in its own HR pixels along one axis, (count, scale*tile) f4; they sum to 1 everywhere."""
    starts = tile_starts(size, tile)
    centre = (np.arange(scale * tile) + 0.5) / scale  # in LR pixels from the tile's edge
    rise = np.clip((centre - MARGIN) / BLEND, 0, 1)
    weights = np.ones((len(starts), scale * tile))
    weights[1:] *= rise  # the image's own borders are no inner edges
    weights[:-1] *= rise[::-1]
    total = np.zeros(scale * size)
    places = [slice(scale * start, scale * (start + tile)) for start in starts]
    for place, weight in zip(places, weights, strict=True):
        total[place] += weight
    return np.stack([weight / total[place] for place, weight in zip(places, weights, strict=True)]).astype("f4")


def tile_rows(shape: tuple[int, ...], tile_size: int) -> int:
    """How many rows of tiles `join_tiles` asks for."""
    return len(tile_starts(shape[0], min(tile_size, shape[0])))


def join_tiles(
    shape: tuple[int, ...],
    scale: int,
    tile_size: int,
    answer: Callable[[list[Window]], np.ndarray],
    advance: Callable[[], None],
    planes: int = 1,
) -> np.ndarray:
    """Join tiles of at most `tile_size` LR pixels a side to images (planes,scale*h,scale*w) f4; `shape` is (h,w).

    `answer` is called for each row of tiles with their windows in the LR image, all of one shape, and gives the tiles
    (n,planes,scale*rows,scale*columns); then `advance` is.
    """
    height, width = shape
    tile_height, tile_width = min(tile_size, height), min(tile_size, width)
    rows, columns = tile_starts(height, tile_height), tile_starts(width, tile_width)
    row_weights = tile_weights(height, tile_height, scale)
    column_weights = tile_weights(width, tile_width, scale)
    result = np.zeros((planes, scale * height, scale * width), np.float32)
    for row, row_weight in zip(rows, row_weights, strict=True):
        outputs = answer([(slice(row, row + tile_height), slice(left, left + tile_width)) for left in columns])
        band = result[:, scale * row : scale * (row + tile_height)]
        for left, column_weight, output in zip(columns, column_weights, outputs, strict=True):
            band[:, :, scale * left : scale * (left + tile_width)] += row_weight[:, None] * column_weight * output
        advance()
    return result


def super_resolve_image(
    model: TrainedModel,
    image: np.ndarray,
    noise_sigma: float,
    device: torch.device,
    tile_size: int,
    self_ensemble: bool = False,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """One image (h,w) of flux -> (scale*h, scale*w) f4, in tiles of at most `tile_size` LR pixels a side.

    All tiles share the amplitude that follows from `noise_sigma`; `noise` (h,w) is each pixel's, where it is known. A
    network that looks no further than MARGIN pixels gives what it would give in one piece; channel attention (RCAN)
    averages over the tile instead of the image.
    """
    resolve = partial(model.super_resolve, self_ensemble=self_ensemble)
    return _in_tiles(resolve, 1, model.config.scale, image, noise_sigma, device, tile_size, noise)[0]


def super_resolve_image_and_sigma(
    model: TrainedModel,
    image: np.ndarray,
    noise_sigma: float,
    device: torch.device,
    tile_size: int,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """The answer of `super_resolve_image` and the 1-sigma error that the network predicts: (2,scale*h,scale*w) f4."""

    def resolve(tiles: np.ndarray, sigma: np.ndarray, **options: Any) -> np.ndarray:
        return np.concatenate(model.super_resolve_and_sigma(tiles, sigma, **options), 1)

    return _in_tiles(resolve, 2, model.config.scale, image, noise_sigma, device, tile_size, noise)


def _in_tiles(
    resolve: Callable[..., np.ndarray],
    planes: int,
    scale: int,
    image: np.ndarray,
    noise_sigma: float,
    device: torch.device,
    tile_size: int,
    noise: np.ndarray | None,
) -> np.ndarray:
    whole = np.full_like(image, noise_sigma) if noise is None else noise

    def answer(windows: list[Window]) -> np.ndarray:
        tiles, sigma = (np.stack([one[None, *window] for window in windows]) for one in (image, whole))
        return resolve(tiles, sigma, device=device, usual_noise=noise_sigma)

    with progress_bar("super-resolve", tile_rows(image.shape, tile_size)) as advance:
        return join_tiles(image.shape, scale, tile_size, answer, advance, planes)
