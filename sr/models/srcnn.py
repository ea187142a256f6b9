"""SRCNN (Dong, Loy, He & Tang 2014, arXiv:1501.00092): bicubic interpolation, then three convolutions at HR size."""

import torch
from pydantic import PositiveInt, field_validator
from torch import nn
from torch.nn.functional import interpolate

from simulate.settings import Settings


class SrcnnSettings(Settings):
    """The defaults are the paper's 9-5-5, which later papers compare with; `mapping_kernel=1` is its first, 9-1-5."""

    features: PositiveInt = 64
    mapped_features: PositiveInt = 32
    mapping_kernel: PositiveInt = 5
    """Width in HR pixels of the second convolution, an odd number."""

    @field_validator("mapping_kernel")
    @classmethod
    def _check_kernel(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"the kernel must be odd, not {kernel}: an even one shifts the image by half a pixel")
        return kernel


class Srcnn(nn.Module):
    """SRCNN; `upsampling` is its last layer, the reconstruction, for the interpolation before it has no weights.

    The convolutions before a ReLU start as FSRCNN's (He et al. 2015) and not with the paper's deviation of 0.001, which
    goes with a learning rate for each layer; the reconstruction starts as in the paper (section 3.3).
    """

    def __init__(self, settings: SrcnnSettings, scale: int, channels: int) -> None:
        super().__init__()
        self.scale = scale
        wide, narrow, kernel = settings.features, settings.mapped_features, settings.mapping_kernel
        extraction = nn.Conv2d(channels, wide, 9, padding=4)
        mapping = nn.Conv2d(wide, narrow, kernel, padding=kernel // 2)
        for convolution in (extraction, mapping):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.features = nn.Sequential(extraction, nn.ReLU(), mapping, nn.ReLU())
        self.upsampling = nn.Conv2d(narrow, channels, 5, padding=2)
        nn.init.normal_(self.upsampling.weight, std=0.001)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        upsampled = interpolate(lr.float(), scale_factor=self.scale, mode="bicubic", align_corners=False)
        return self.upsampling(self.features(upsampled)).float()
