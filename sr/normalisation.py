"""From flux to the numbers a network sees, and back: invertible, and kept with the model."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simulate.errors import InputError
from simulate.shards import Pairs


@dataclass(frozen=True)
class Normalisation:
    """Surface brightness in units of `factor` x the median LR noise of the image.

    Dividing by an amplitude that follows the noise, not the image's own peak, keeps empty images empty and makes the
    network's answer scale with the flux unit. HR pixels are `scale`**2 times smaller than LR pixels, so HR flux per
    pixel is multiplied by `scale`**2 to be the same surface brightness.
    """

    factor: float
    scale: int

    def amplitude(self, lr_noise: Tensor) -> Tensor:
        """(B,1,h,w) 1-sigma noise -> (B,1,1,1) flux per LR pixel that the network sees as 1."""
        values = lr_noise.flatten(1).contiguous()  # torch 2.13's median of an expanded tensor is uninitialised memory
        return self.factor * values.median(1).values.view(-1, 1, 1, 1)

    def to_network_lr(self, lr: Tensor, amplitude: Tensor) -> Tensor:
        """(B,1,h,w) flux per LR pixel -> network input."""
        return lr / amplitude

    def to_network_hr(self, hr: Tensor, amplitude: Tensor) -> Tensor:
        """(B,1,H,W) flux per HR pixel -> network target."""
        return hr * (self.scale**2 / amplitude)

    def from_network_hr(self, output: Tensor, amplitude: Tensor) -> Tensor:
        """Network output -> (B,1,H,W) flux per HR pixel; the inverse of `to_network_hr`."""
        return output * (amplitude / self.scale**2)


def fit_normalisation(pairs: Pairs) -> Normalisation:
    """The factor that gives the LR images of `pairs` a root mean square of 1 in the network's domain.

    Raises `InputError` if a noise map has no positive median or the images are empty.
    """
    noise = np.median(pairs.lr_noise, axis=(1, 2, 3), keepdims=True)
    if not (noise > 0).all():
        row = int(np.argmin(noise))
        raise InputError(f"lr_noise of sample {pairs.index[row]}: expected a positive median, found {noise.min():g}")
    factor = float(np.sqrt(np.mean((pairs.lr / noise).astype(np.float64) ** 2)))
    if not (np.isfinite(factor) and factor > 0):
        raise InputError(f"lr: expected finite images that are not all zero, found a root mean square of {factor:g}")
    return Normalisation(factor, pairs.scale)


def as_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """A float32 copy of `array` on `device`."""
    return torch.tensor(np.asarray(array, dtype=np.float32), device=device)
