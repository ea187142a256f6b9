"""SRGAN (Ledig et al. 2017, arXiv:1609.04802, figure 4): SRResNet as generator, a VGG-style discriminator."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import nn

from .srresnet import FreezableBatchNorm2d, SrresnetSettings

AdversaryKind = Literal["standard", "relativistic", "least-squares"]
"""What generator and discriminator play for; the losses are in `sr.adversarial`."""

MINIMUM_CROP = 16  # HR pixels; four strides of 2 leave one pixel


class SrganSettings(SrresnetSettings):
    """The generator's settings are SRResNet's, so that a trained SRResNet can be its start."""

    discriminator_features: PositiveInt = 64
    """Channels of the discriminator's first convolution; the last has eight times as many."""
    discriminator_dense: PositiveInt = 1024
    adversary: AdversaryKind = "standard"


class Discriminator(nn.Module):
    """Tells real HR crops of `size` x `size` pixels from generated ones; the paper's crops have 96.

    Eight 3x3 convolutions of 1, 1, 2, 2, 4, 4, 8, 8 times `features` channels, every second one with stride 2,
    LeakyReLU(0.2), batch normalisation after all but the first, and two dense layers. The convolutions that batch
    normalisation follows have no bias (it would be subtracted again). The paper's last sigmoid belongs to the loss
    (`binary_cross_entropy_with_logits`).
    """

    def __init__(self, size: int, channels: int, features: int = 64, dense: int = 1024) -> None:
        if size < MINIMUM_CROP:
            raise ValueError(f"the discriminator needs HR crops of at least {MINIMUM_CROP} pixels, not {size}")
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, features, 3, padding=1), nn.LeakyReLU(0.2)]
        inputs, side = features, size
        for factor, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            outputs = factor * features
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                FreezableBatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
            ]
            inputs, side = outputs, (side + stride - 1) // stride
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs * side**2, dense), nn.LeakyReLU(0.2), nn.Linear(dense, 1)
        )

    def forward(self, hr: torch.Tensor) -> torch.Tensor:
        """(B,C,size,size) -> (B,1) float32 logits, high for real images."""
        return self.dense(self.convolutions(hr)).float()
