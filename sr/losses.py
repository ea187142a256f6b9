"""Pixel losses, averaged over real pixels, in float32 whatever the network computes in."""

from collections.abc import Callable
from typing import Literal

import torch

PixelLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

CHARBONNIER_EPSILON = 1e-3  # Lai et al. 2017, arXiv:1704.03915, section 3.4


def _squared(difference: torch.Tensor) -> torch.Tensor:
    return difference**2


def _charbonnier(difference: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(difference**2 + CHARBONNIER_EPSILON**2)


_PENALTIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "l1": torch.abs,
    "mse": _squared,
    "charbonnier": _charbonnier,
}


def pixel_loss(name: Literal["l1", "mse", "charbonnier"]) -> PixelLoss:
    """The loss function (prediction, target, mask) -> scalar: the mean penalty over the pixels where `mask` is True.

    All of shape (B,C,H,W); `mask` None means that every pixel is real. A batch without a real pixel gives 0.
    """
    penalty = _PENALTIES[name]

    def loss(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        difference = prediction.float() - target.float()
        if mask is None:
            return penalty(difference).mean()
        # where() before the penalty, not after: a value that is not finite must not reach the gradient
        penalties = penalty(torch.where(mask, difference, 0.0)) * mask
        return penalties.sum() / mask.sum().clamp(min=1)

    return loss
