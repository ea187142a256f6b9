"""FSRCNN (Dong, Loy & Tang 2016, arXiv:1608.00367): shrink, map, expand at LR size, then one transposed convolution."""

import torch
from pydantic import PositiveInt
from torch import nn

from simulate.settings import Settings

KERNEL = 9  # of the transposed convolution


class FsrcnnSettings(Settings):
    """FSRCNN(d, s, m) of the paper's section 3.2."""

    features: PositiveInt = 56
    """d: channels of the LR features."""
    shrunk_features: PositiveInt = 12
    """s: channels between shrinking and expanding."""
    mapping_layers: PositiveInt = 4
    """m: 3x3 convolutions on the shrunk features."""


class Fsrcnn(nn.Module):
    """FSRCNN with a PReLU of one slope a channel after each convolution but the last."""

    def __init__(self, settings: FsrcnnSettings, scale: int, channels: int) -> None:
        super().__init__()
        wide, narrow = settings.features, settings.shrunk_features
        layers = _convolution(channels, wide, 5) + _convolution(wide, narrow, 1)
        for _ in range(settings.mapping_layers):
            layers += _convolution(narrow, narrow, 3)
        self.features = nn.Sequential(*layers, *_convolution(narrow, wide, 1))
        # The kernel of LR pixel i is centred on HR pixel scale*i + 4 - padding, the LR pixel itself on
        # scale*i + (scale - 1)/2. This padding brings the two together: exactly for odd scales, and to half an HR pixel
        # for even ones, where no 9-pixel kernel can be symmetric about a pixel edge and the weights learn the rest.
        padding = (KERNEL - scale + 1) // 2
        output_padding = scale - KERNEL + 2 * padding  # makes the output exactly scale times the input
        self.upsampling = nn.ConvTranspose2d(
            wide, channels, KERNEL, stride=scale, padding=padding, output_padding=output_padding
        )
        nn.init.normal_(self.upsampling.weight, std=0.001)  # section 3.3

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        return self.upsampling(self.features(lr)).float()


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(convolution.weight, a=0.25)  # He et al. 2015 for the PReLU's initial slope
    return [convolution, nn.PReLU(outputs)]
