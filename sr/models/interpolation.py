"""Bilinear and bicubic interpolation as networks without parameters: the baselines."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from simulate.settings import Settings


class InterpolationSettings(Settings):
    """Interpolation has nothing to set."""


class Interpolation(nn.Module):
    """Interpolates surface brightness on pixel centres: LR pixel i covers HR pixels scale*i .. scale*i + scale - 1.

    The weights that make up each HR pixel sum to 1, and those that an LR pixel has in the HR pixels around it sum to
    scale² (away from the border), so constants stay constant and the flux of a compact source is conserved.
    Bicubic is Keys' kernel (1981, IEEE TASSP 29, 1153) with a = -0.75, torch's and OpenCV's.
    """

    def __init__(self, mode: Literal["bilinear", "bicubic"], scale: int) -> None:
        super().__init__()
        self.mode = mode
        self.scale = scale

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        return functional.interpolate(lr.float(), scale_factor=self.scale, mode=self.mode, align_corners=False)


def build_bilinear(settings: InterpolationSettings, scale: int, channels: int) -> nn.Module:  # noqa: ARG001
    return Interpolation("bilinear", scale)


def build_bicubic(settings: InterpolationSettings, scale: int, channels: int) -> nn.Module:  # noqa: ARG001
    return Interpolation("bicubic", scale)
