"""SRResNet (Ledig et al. 2017, arXiv:1609.04802, figure 4): residual blocks with batch normalisation, pixel shuffle."""

import torch
from pydantic import PositiveInt
from torch import nn

from simulate.settings import Settings

from ..processes import mean_over_processes, process_count
from .pixel_shuffle import shuffle_stages


class SrresnetSettings(Settings):
    """Size of the network; the defaults are the paper's."""

    blocks: PositiveInt = 16
    features: PositiveInt = 64


class FreezableBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that stays in evaluation mode while its weights are frozen.

    Without this the running statistics of a frozen network go on changing in training mode. In several processes the
    statistics are those of the whole batch.
    """

    def train(self, mode: bool = True) -> "FreezableBatchNorm2d":
        return super().train(mode and self.weight.requires_grad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,h,w)."""
        if not self.training or process_count() == 1:
            return super().forward(x)
        values = x.float()
        mean = mean_over_processes(values.mean((0, 2, 3)))
        difference = values - mean[:, None, None]
        variance = mean_over_processes((difference**2).mean((0, 2, 3)))
        with torch.no_grad():
            buffers, weight = dict(self.named_buffers()), self.momentum or 0.0
            count = process_count() * x.numel() / x.shape[1]
            buffers["running_mean"].lerp_(mean, weight)
            buffers["running_var"].lerp_(variance * (count / (count - 1)), weight)
            buffers["num_batches_tracked"].add_(1)
        gain = self.weight * (variance + self.eps).rsqrt()
        return (difference * gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class ResidualBlock(nn.Module):
    """x + BN(conv(PReLU(BN(conv(x)))))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            FreezableBatchNorm2d(features),
            nn.PReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            FreezableBatchNorm2d(features),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Srresnet(nn.Module):
    """SRResNet: the last 9x9 convolution has no activation, so fluxes are unbounded and may be negative."""

    def __init__(self, settings: SrresnetSettings, scale: int, channels: int) -> None:
        super().__init__()
        features = settings.features
        self.head = nn.Sequential(nn.Conv2d(channels, features, 9, padding=4), nn.PReLU())
        self.body = nn.Sequential(
            *(ResidualBlock(features) for _ in range(settings.blocks)),
            nn.Conv2d(features, features, 3, padding=1),
            FreezableBatchNorm2d(features),
        )
        self.upsampling = nn.Sequential(
            *shuffle_stages(features, scale, activation=nn.PReLU), nn.Conv2d(features, channels, 9, padding=4)
        )

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        shallow = self.head(lr)
        return self.upsampling(shallow + self.body(shallow)).float()
