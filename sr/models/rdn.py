"""RDN (Zhang et al. 2018, arXiv:1802.08797): residual dense blocks, and all of their outputs fused."""

import torch
from pydantic import PositiveInt
from torch import nn

from simulate.settings import Settings

from .pixel_shuffle import shuffle_stages


class RdnSettings(Settings):
    """Size of the network; the defaults are those of the published networks."""

    blocks: PositiveInt = 16
    """D: residual dense blocks."""
    layers: PositiveInt = 8
    """C: convolutions in each block, before its fusion."""
    growth: PositiveInt = 64
    """G: channels that each of them adds."""
    features: PositiveInt = 64
    """G0: channels between blocks."""


class DenseBlock(nn.Module):
    """Each convolution sees the block's input and all outputs before it; a 1x1 one fuses them (section 3.2)."""

    def __init__(self, features: int, growth: int, layers: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(features + number * growth, growth, 3, padding=1) for number in range(layers)
        )
        self.fusion = nn.Conv2d(features + layers * growth, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = x
        for convolution in self.convolutions:
            known = torch.cat([known, convolution(known).relu()], 1)
        return x + self.fusion(known)


class Rdn(nn.Module):
    """RDN: two shallow convolutions, dense blocks, global fusion with a skip, pixel shuffle, reconstruction."""

    def __init__(self, settings: RdnSettings, scale: int, channels: int) -> None:
        super().__init__()
        features = settings.features

        def convolution(inputs: int = features, outputs: int = features, kernel: int = 3) -> nn.Module:
            return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

        self.head = convolution(inputs=channels)
        self.second = convolution()
        self.blocks = nn.ModuleList(
            DenseBlock(features, settings.growth, settings.layers) for _ in range(settings.blocks)
        )
        self.fusion = nn.Sequential(convolution(inputs=settings.blocks * features, kernel=1), convolution())
        self.upsampling = nn.Sequential(*shuffle_stages(features, scale), convolution(outputs=channels))

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        shallow = self.head(lr)
        outputs = [self.second(shallow)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return self.upsampling(shallow + self.fusion(torch.cat(outputs[1:], 1))).float()
