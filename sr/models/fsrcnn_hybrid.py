"""Hybrid FSRCNN: D4-equivariant features, and an ordinary convolution to upsample them, free to break the symmetry."""

import torch
from pydantic import PositiveInt
from torch import nn

from .d4 import ORDER, centred_kernel
from .fsrcnn_equivariant import EquivariantFsrcnnSettings, equivariant_features


class HybridFsrcnnSettings(EquivariantFsrcnnSettings):
    """As the equivariant FSRCNN's; fewer fields, for here each of their channels has a kernel of its own."""

    fields: PositiveInt = 7


class HybridFsrcnn(nn.Module):
    """The equivariant FSRCNN whose upsampling kernels are free for each of the 8 channels of a field."""

    def __init__(self, settings: HybridFsrcnnSettings, scale: int, channels: int) -> None:
        super().__init__()
        self.features = equivariant_features(settings, channels)
        kernel = centred_kernel(scale)
        self.upsampling = nn.ConvTranspose2d(
            ORDER * settings.fields, channels, kernel, stride=scale, padding=(kernel - scale) // 2
        )
        nn.init.normal_(self.upsampling.weight, std=0.001)  # section 3.3 of FSRCNN's paper

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        return self.upsampling(self.features(lr)).float()
