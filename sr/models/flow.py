"""Conditional flow matching (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003) for SR.

Noise is carried to HR images along an ordinary differential equation whose velocity a network has learnt, given the LR
image: each noise image becomes one draw from the posterior p(HR | LR). What is carried is x = (HR - bicubic(LR)) / s,
in units s that follow the LR image (`residual_scale`). For lenses seen by Euclid and HST the residual is some 0.02 in
the sky and 10 in a bright core; what the LR image leaves open of it is 0.2 to 0.8 s everywhere. So the noise is little
larger than what it has to become: a network makes an error in proportion to the noise that it has to take away.

Between noise x0 and residual x1, x_t = (1-t) x0 + t x1, and the velocity is v(x_t, t, LR) = E[x1 - x0 | x_t, LR].
With D = (1-t)² + t², x_t / sqrt(D) turns from x0 to x1 as time goes by. The network F answers in the direction of that
turn, ((1-t) x1 - t x0) / sqrt(D), which is of order 1 at all times (the preconditioning of Karras et al. 2022,
arXiv:2206.00364, for this path):

    v = ((2t-1) x_t + sqrt(D) F(t x_t / D, t, LR)) / D

The network is shown t / D times x_t, for x_t is x0 at first and tells nothing of x1. So at t = 0 it is shown zeros
whatever x0, and v(x0, 0, LR) + x0 = F(0, 0, LR) = E[x1 | LR] exactly as far as it has learnt: `forward`, the
posterior's mean in one evaluation. A part of each batch is trained at t = 0 for this.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional

from simulate.settings import Settings

from ..samples import Batch
from .interpolation import Interpolation

OCTAVES = 6
"""Frequencies 1, 2, ... 32 of the angle arctan(t / (1-t)) tell the network the time."""


class FlowSettings(Settings):
    """Size of the network, the unit of its residuals and how it is trained."""

    blocks: PositiveInt = 12
    features: PositiveInt = 128
    residual_floor: PositiveFloat = 0.01
    """The residual's unit where the LR image is empty; a third of the noise of configs/quickstart.yaml."""
    residual_contrast: PositiveFloat = 0.05
    """The residual's unit over the LR surface brightness, where that is bright."""
    mean_share: float = Field(0.25, ge=0, le=1)
    """The share of a batch that is trained at t = 0, which is what `forward` answers with."""


class TimedBlock(nn.Module):
    """h + conv(SiLU((1 + a) conv(SiLU(h)) + b)); a and b follow the time (FiLM, Perez et al. 2018, arXiv:1709.07871).

    No normalisation: it would mix distant pixels, and a tile would differ from the whole image.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(features, 2 * features)
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """(B,features,h,w), (B,features) -> (B,features,h,w)."""
        gain, offset = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
        return h + self.second(functional.silu(torch.addcmul(offset, 1 + gain, self.first(functional.silu(h)))))


class Flow(nn.Module):
    """The velocity's network, at the LR image's resolution, and what it is good for: mean, samples, training."""

    def __init__(self, settings: FlowSettings, scale: int, channels: int) -> None:
        super().__init__()
        features = settings.features
        self.settings, self.scale = settings, scale
        self.bicubic = Interpolation("bicubic", scale)
        self.time = nn.Sequential(nn.Linear(2 * OCTAVES, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())
        self.head = nn.Conv2d(channels * (2 + scale**2), features, 3, padding=1)
        self.body = nn.ModuleList(TimedBlock(features) for _ in range(settings.blocks))
        self.upsampling = nn.Sequential(
            nn.SiLU(), nn.Conv2d(features, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, lr: Tensor) -> Tensor:
        """The posterior's mean, in one evaluation: (B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        start = lr.new_zeros(len(lr), lr.shape[1], self.scale * lr.shape[2], self.scale * lr.shape[3])
        return self._image(lr, self._direction(start, lr.new_zeros(len(lr)), lr))

    def sample(self, lr: Tensor, noise: Tensor, steps: int = 8) -> Tensor:
        """One posterior draw an image, in 2 `steps` evaluations: lr (B,C,h,w) -> (B,C,scale*h,scale*w) float32.

        `noise`, of the result's shape, is standard normal; the same noise gives the same draw.
        """
        return self._image(lr, transport(partial(self.velocity, lr=lr), noise, steps))

    def training_loss(self, batch: Batch, generator: Generator) -> Tensor:
        """Mean of |v - (x1 - x0)|² over real pixels, at random times and noise (arXiv:2210.02747, equation 23).

        The times are as dense as the steps of `transport`. Pixels that are not real teach nothing; the network sees
        them as if the residual were zero. A batch without a real pixel gives 0.
        """
        target = (batch.hr - self.bicubic(batch.lr)) / self.residual_scale(batch.lr, self.scale)
        target = torch.where(batch.mask, target, 0.0)
        time, mean_only = torch.rand(2, len(target), generator=generator, device=target.device)
        time = torch.where(mean_only < self.settings.mean_share, 0.0, schedule(time))
        noise = torch.randn(target.shape, generator=generator, device=target.device)
        passed = time[:, None, None, None]
        velocity = self.velocity((1 - passed) * noise + passed * target, time, batch.lr)
        errors = (velocity - (target - noise)) ** 2 * batch.mask
        return errors.sum() / batch.mask.sum().clamp(min=1)

    def velocity(self, x: Tensor, time: Tensor, lr: Tensor) -> Tensor:
        """v(x_t, t, LR): x (B,C,scale*h,scale*w), time (B,) and lr (B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        passed = time[:, None, None, None]
        squared = (1 - passed) ** 2 + passed**2
        return ((2 * passed - 1) * x + squared.sqrt() * self._direction(x, time, lr)) / squared

    def residual_scale(self, lr: Tensor, scale: int = 1) -> Tensor:
        """s: what residuals are measured in, (B,C,h,w) -> (B,C,scale*h,scale*w) float32, positive."""
        power = functional.avg_pool2d(lr.float() ** 2, 3, stride=1, padding=1, count_include_pad=False)
        size = (self.settings.residual_floor**2 + self.settings.residual_contrast**2 * power).sqrt()
        if scale == 1:
            return size
        return functional.interpolate(size, scale_factor=scale, mode="bilinear", align_corners=False)

    def _image(self, lr: Tensor, x: Tensor) -> Tensor:
        return self.bicubic(lr) + x * self.residual_scale(lr, self.scale)

    def _direction(self, x: Tensor, time: Tensor, lr: Tensor) -> Tensor:
        """F: of the shape of x, float32."""
        size = self.residual_scale(lr)
        shown = x * (time / ((1 - time) ** 2 + time**2))[:, None, None, None]
        turns = torch.atan2(time, 1 - time)[:, None] * 2 ** torch.arange(OCTAVES, device=x.device)
        embedded = self.time(torch.cat([turns.sin(), turns.cos()], dim=1))
        seen = torch.cat([lr / size, size.log(), functional.pixel_unshuffle(shown, self.scale)], dim=1)
        h = self.head(seen)
        for block in self.body:
            h = block(h, embedded)
        return self.upsampling(h).float()


def schedule(progress: Tensor) -> Tensor:
    """Times (0 ... 1) after equal parts of the work: denser towards 1, where narrow posteriors are decided."""
    return 1 - (1 - progress) ** 2


def transport(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """Carry x (B,...) from t = 0 to t = 1 along dx/dt = velocity(x, t), t (B,), by `steps` midpoint steps.

    With the exact velocity from N(0, 1) to N(mean, sigma²) the mean is exact, and 8 steps give a spread of 0.96 to
    1.00 sigma for all sigma from 0.02 to 1.5 (Heun's rule: 1.00 to 1.30; with equal steps, 0.99 to 3.2).
    Raises `ValueError` if there is no step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    times = schedule(torch.linspace(0, 1, steps + 1, dtype=torch.float64)).tolist()
    for begin, end in pairwise(times):
        middle = x + 0.5 * (end - begin) * velocity(x, x.new_full((len(x),), begin))
        x = x + (end - begin) * velocity(middle, x.new_full((len(x),), 0.5 * (begin + end)))
    return x
