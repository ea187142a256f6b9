"""Networks that say how wrong they may be: a 1-sigma error for each HR pixel beside the image.

Such a network has `predicts_sigma`, which is True, and `mean_and_sigma`. The trainer adds `sigma_loss` to the losses of
the image. Errors of neighbouring pixels hang together, which one sigma a pixel does not say: draws that take it for
independent (`independent_draws`) are right pixel by pixel and too sure in sums over pixels.
"""

from typing import Protocol, TypeGuard

import numpy as np
from torch import Tensor, nn

from .samples import Batch

SIGMA_WEIGHT = 1e-3
"""Of `sigma_loss`. Adam's steps do not depend on it, but all gradients are clipped together: with a weight of 1 those
of large errors, (error / sigma)^2, took up the norm that the image's may have (2.3 dB after 120 steps, one seed)."""


class SigmaNetwork(Protocol):
    """A network that predicts its own error."""

    def mean_and_sigma(self, lr: Tensor, *told: object) -> tuple[Tensor, Tensor]:
        """What the network answers with, (B,C,H,W), and the 1-sigma error of it, positive; both float32."""
        ...


def predicts_sigma(network: nn.Module) -> TypeGuard[SigmaNetwork]:
    """Whether `network` predicts its own error."""
    return bool(getattr(network, "predicts_sigma", False))


def sigma_loss(output: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
    """Mean of ln(sigma) + (output - hr)^2 / (2 sigma^2) over real pixels: the Gaussian negative log-likelihood of the
    errors, without ln(2 pi) / 2. Least where sigma^2 is the mean squared error. A batch without real pixels gives 0.

    The image learns nothing from it: weighted by 1 / sigma^2, it would learn least where it is worst (Seitzer et al.
    2022, arXiv:2203.09168). Their remedy, weights of sigma^(2 beta), gives the image at beta = 1 a squared error that
    counts everywhere alike; here the image has the losses of the training for this.
    """
    error = (output.detach() - batch.hr).masked_fill(~batch.mask, 0.0)
    real_sigma = sigma.masked_fill(~batch.mask, 1.0)
    return (real_sigma.log() + 0.5 * (error / real_sigma) ** 2).sum() / batch.mask.sum().clamp(min=1)


def independent_draws(mean: np.ndarray, sigma: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` images (N,count,H,W) f4 of pixels that are independent and normal, with `mean`, `sigma` (N,1,H,W)."""
    shape = (len(mean), count, *mean.shape[-2:])
    return mean + sigma * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
