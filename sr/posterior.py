"""Posterior draws of images of any size, and the standard deviation that they give each pixel."""

from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from simulate.errors import InputError
from simulate.progress import progress_bar

from .predicted_variance import predicts_sigma
from .tiles import Window, join_tiles, tile_rows
from .trained_model import TrainedModel

DEFAULT_DRAWS = 16
"""Their standard deviation is good to 18 %."""
STEPS = 8
"""Of a flow's transport from noise to an image."""


@runtime_checkable
class PosteriorNetwork(Protocol):
    """A network that has more than one answer."""

    def sample(self, lr: Tensor, noise: Tensor, steps: int) -> Tensor:
        """One draw an image: lr (B,C,h,w) and standard normal noise (B,C,H,W) -> (B,C,H,W) float32."""
        ...


def can_sample(model: TrainedModel) -> bool:
    """Whether `model.sample` draws from a posterior."""
    return isinstance(model.network, PosteriorNetwork)


def check_draws(model: TrainedModel, draws: int | None) -> int:
    """How many draws to make: DEFAULT_DRAWS if nothing was asked for and the model can sample, else 0.

    Raises `InputError` for what gives no standard deviation.
    """
    if draws is None:
        return DEFAULT_DRAWS if can_sample(model) else 0
    if draws and predicts_sigma(model.network):
        raise InputError(
            f"draws: model {model.name} predicts its error itself, without draws; leave --draws out, or 0 for no map"
        )
    if draws and not can_sample(model):
        raise InputError(
            f"draws: model {model.name} ({model.config.architecture}) gives one answer an image, no posterior; "
            "leave --draws out, or give a --model of architecture 'flow'"
        )
    if draws < 0 or draws == 1:
        raise InputError(f"draws: expected 0 (no map) or at least 2, found {draws}")
    return draws


def sigma_history(draws: int) -> str:
    """How the HDU `SIGMA` came about."""
    return (
        f"HDU SIGMA: standard deviation of {draws} posterior draws ({STEPS} steps each) of each pixel, same unit; "
        "pixels are correlated; the noise that a draw starts from goes through the image without tiles"
    )


PREDICTED_HISTORY = (
    "HDU SIGMA: 1 sigma error of each pixel as the network predicts it, same unit; errors of neighbours hang together"
)


def sigma_image(
    model: TrainedModel,
    image: np.ndarray,
    noise_sigma: float,
    device: torch.device,
    tile_size: int,
    draws: int,
    seed: int = 0,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Standard deviation of `draws` posterior draws of one image (h,w), made in tiles: (scale*h, scale*w) f4.

    Draw i starts from noise for the whole image that depends on (seed, i) alone, of which each tile takes its part. So
    two tiles agree on the draw where they overlap and are joined draw by draw; tiles with noise of their own would be
    averaged there, and their standard deviation would fall to 0.7 of what it should be. Memory: a few images, whatever
    the number of draws.
    """
    scale, (height, width) = model.config.scale, image.shape
    whole = np.full_like(image, noise_sigma) if noise is None else noise

    def answer(start: np.ndarray, windows: list[Window]) -> np.ndarray:
        tiles, sigma = (np.stack([one[None, *window] for window in windows]) for one in (image, whole))
        enlarged = [[slice(scale * side.start, scale * side.stop) for side in window] for window in windows]
        parts = np.stack([start[None, *window] for window in enlarged])
        return model.sample(tiles, sigma, 1, 0, device, STEPS, start=parts, usual_noise=noise_sigma)

    mean, squares = np.zeros((2, scale * height, scale * width), np.float32)
    with progress_bar("posterior draws", draws * tile_rows(image.shape, tile_size)) as advance:
        for draw in range(draws):
            start = np.random.default_rng([seed, draw]).standard_normal(mean.shape, dtype=np.float32)
            one = join_tiles(image.shape, scale, tile_size, partial(answer, start), advance)[0]
            change = one - mean  # Welford 1962, Technometrics 4, 419
            mean += change / (draw + 1)
            squares += change * (one - mean)
    return np.sqrt(squares / (draws - 1))
