"""FSRCNN (Dong, Loy & Tang 2016, arXiv:1608.00367) of D4-equivariant layers: turned images are super-resolved alike."""

import torch
from pydantic import PositiveInt
from torch import nn

from simulate.settings import Settings

from .d4 import GroupConvolution, GroupPReLU, GroupUpsampling


class EquivariantFsrcnnSettings(Settings):
    """FSRCNN(d, s, m) with fields of 8 channels, one for each symmetry of the square, in place of channels."""

    fields: PositiveInt = 24
    """d: fields of the LR features."""
    shrunk_fields: PositiveInt = 5
    """s: fields between shrinking and expanding."""
    mapping_layers: PositiveInt = 4
    """m: 3x3 convolutions on the shrunk fields."""


class EquivariantFsrcnn(nn.Module):
    """FSRCNN layer by layer, and no more: no interpolated image is added to the output.

    The transposed convolution has 10 pixels for even scales, where FSRCNN's 9 cannot be equivariant.
    """

    def __init__(self, settings: EquivariantFsrcnnSettings, scale: int, channels: int) -> None:
        super().__init__()
        self.features = equivariant_features(settings, channels)
        self.upsampling = GroupUpsampling(settings.fields, channels, scale)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        return self.upsampling(self.features(lr)).float()


def equivariant_features(settings: EquivariantFsrcnnSettings, channels: int) -> nn.Sequential:
    """FSRCNN's layers at LR size: (B,channels,h,w) -> (B,8*fields,h,w)."""
    wide, narrow = settings.fields, settings.shrunk_fields

    def layer(inputs: int, outputs: int, kernel: int, lift: bool = False) -> list[nn.Module]:
        return [GroupConvolution(inputs, outputs, kernel, lift), GroupPReLU(outputs)]

    layers = layer(channels, wide, 5, lift=True) + layer(wide, narrow, 1)
    for _ in range(settings.mapping_layers):
        layers += layer(narrow, narrow, 3)
    return nn.Sequential(*layers, *layer(narrow, wide, 1))
