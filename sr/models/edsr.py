"""EDSR (Lim et al. 2017, arXiv:1707.02921): residual blocks without batch normalisation.

The published code subtracts a fixed RGB mean before the network and adds it after; as in RCAN, that is left out.
"""

import torch
from pydantic import Field, PositiveInt
from torch import nn

from simulate.settings import Settings

from .pixel_shuffle import shuffle_stages


class EdsrSettings(Settings):
    """Size of the network; the defaults are the paper's large EDSR, its baseline has 16, 64 and 1."""

    blocks: PositiveInt = 32
    features: PositiveInt = 256
    residual_scale: float = Field(0.1, gt=0, le=1)
    """What a block adds is multiplied by this; keeps wide networks stable."""


class ResidualBlock(nn.Module):
    """x + residual_scale conv(ReLU(conv(x))) (figure 2c)."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.layers = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, features, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.residual_scale * self.layers(x)


class Edsr(nn.Module):
    """EDSR: shallow features, residual blocks with a skip around them all, pixel shuffle, reconstruction."""

    def __init__(self, settings: EdsrSettings, scale: int, channels: int) -> None:
        super().__init__()
        features = settings.features
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.body = nn.Sequential(
            *(ResidualBlock(features, settings.residual_scale) for _ in range(settings.blocks)),
            nn.Conv2d(features, features, 3, padding=1),
        )
        self.upsampling = nn.Sequential(*shuffle_stages(features, scale), nn.Conv2d(features, channels, 3, padding=1))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        shallow = self.head(lr)
        return self.upsampling(shallow + self.body(shallow)).float()
