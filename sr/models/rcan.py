"""RCAN (Zhang et al. 2018, arXiv:1807.02758): residual groups of blocks with channel attention.

The published code subtracts a fixed RGB mean before the network and adds it after. That layer has no trainable
parameters and no meaning for flux, so it is left out.
"""

import torch
from pydantic import PositiveInt, model_validator
from torch import nn

from simulate.settings import Settings

from .pixel_shuffle import shuffle_stages


class RcanSettings(Settings):
    """Size of the network; the defaults are the paper's (section 3.4)."""

    groups: PositiveInt = 10
    blocks: PositiveInt = 20
    """Residual channel-attention blocks in each group."""
    features: PositiveInt = 64
    reduction: PositiveInt = 16
    """The attention's bottleneck has features/reduction channels."""

    @model_validator(mode="after")
    def _check_reduction(self) -> "RcanSettings":
        if self.features % self.reduction:
            raise ValueError(f"features ({self.features}) must be a multiple of reduction ({self.reduction})")
        return self


class ChannelAttention(nn.Module):
    """Rescales each channel by a function of all channels' means over the image (equations 7 to 9)."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(features, features // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(features // reduction, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weights(x)


class Residual(nn.Module):
    """x + layers(x): a block, a group, and the whole body are all of this form (equations 4, 5 and 10)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Rcan(nn.Module):
    """RCAN: shallow features, residual in residual, pixel shuffle, reconstruction."""

    def __init__(self, settings: RcanSettings, scale: int, channels: int) -> None:
        super().__init__()
        features = settings.features

        def convolution(inputs: int = features, outputs: int = features) -> nn.Module:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        def block() -> nn.Module:
            attention = ChannelAttention(features, settings.reduction)
            return Residual(convolution(), nn.ReLU(), convolution(), attention)

        def group() -> nn.Module:
            return Residual(*(block() for _ in range(settings.blocks)), convolution())

        self.head = convolution(inputs=channels)
        self.body = Residual(*(group() for _ in range(settings.groups)), convolution())
        self.upsampling = nn.Sequential(*shuffle_stages(features, scale), convolution(outputs=channels))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        return self.upsampling(self.body(self.head(lr))).float()
