"""Unrolled super-resolution: a network that knows the degradation LR = A(HR) + noise.

The image x starts as the interpolated LR image and is improved in steps. Each goes along the backprojected residual
LR - A(x), and then a small network corrects x, seeing x and what is left of the residual; its features are carried from
step to step as a memory, at the LR image's resolution, where they are cheap. These are the recurrent inference machines
of Putzke & Welling 2017, arXiv:1706.04008 (for lenses: Morningstar et al. 2019, arXiv:1901.01359), with weights of
their own for each step as in variational networks (Hammernik et al. 2018, arXiv:1704.00447). A is exact and each
image's own, so that the network has to learn the prior alone, and one serves many PSFs and noise levels. The last step
is one of A alone: conjugate gradients towards the LR image.

One network may serve several scales with the same weights: features are on the LR grid, and what goes between the grids
is made for the finest scale, of whose pixels those of another scale are means.

Everything is in units s of what x may be wrong by: a part of the noise in the sky, a part of the light where that is
bright. All layers commute with the symmetries of the square (`sr.models.d4`), as A does if the PSF is turned too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from simulate.errors import InputError
from simulate.settings import Settings

from .d4 import GroupConvolution, GroupDownsampling, GroupPReLU, GroupUpsampling
from .interpolation import Interpolation

if TYPE_CHECKING:
    from ..degradation import Degradation


LEAST_SIGMA = 1e-3
"""Of the unit: a predicted error next to nothing, 10^-19 in the first steps of a training, makes a loss that is not
finite."""


class UnrolledSettings(Settings):
    """Size of the network, and the unit of what it corrects."""

    steps: PositiveInt = 6
    blocks: PositiveInt = 5
    """Residual blocks of two convolutions in each step."""
    fields: PositiveInt = 8
    """Of 8 channels each."""
    iterations: NonNegativeInt = 4
    """Of conjugate gradients at the end."""
    unit_of_noise: PositiveFloat = 0.5
    """The unit s over the noise, where there is no light."""
    unit_of_light: PositiveFloat = 0.15
    """The unit s over the LR surface brightness, where that is bright."""
    predict_sigma: bool = False
    """Predict the 1-sigma error of each HR pixel, too (`sr.predicted_variance`)."""
    scales: tuple[PositiveInt, ...] = ()
    """That the network serves, all of them divisors of the largest; none given: that of the data alone."""


class DataTerm:
    """What LR images and their degradation say about images x (B,C,scale*h,scale*w).

    All in float32: autocast lowers convolutions and matrix products, and there are none here.
    The prior of x is uncorrelated, of standard deviation `spread` s. Light from outside the frame is not known: where a
    share of what reaches an LR pixel could come from there, that share of its light counts as noise.
    """

    def __init__(
        self, lr: Tensor, degradation: Degradation, settings: UnrolledSettings, finest: int | None = None
    ) -> None:
        """The spread is that of pixels of the scale `finest` (None: that of `degradation`), of which others are means:
        of n pixels, sqrt(n) times less."""
        self.lr, self.degradation = lr.float(), degradation
        scale, noise = degradation.operator.scale, degradation.noise.float()
        count = len(degradation.operator.kernels)
        everywhere = self.lr.new_ones(count, 1, scale * lr.shape[-2], scale * lr.shape[-1])
        outside = 1 - degradation.forward(everywhere)
        self.variance = noise**2 + (outside * self.lr) ** 2
        power = functional.avg_pool2d(self.lr**2, 3, stride=1, padding=1, count_include_pad=False)
        self.unit = ((settings.unit_of_noise * noise) ** 2 + settings.unit_of_light**2 * power).sqrt()
        self.hr_unit = functional.interpolate(self.unit, scale_factor=scale, mode="bilinear", align_corners=False)
        self.gain = 1 / scale**2  # no eigenvalue of A A^T is larger if the kernels are positive
        self.share = scale / (finest or scale)

    def residual(self, x: Tensor) -> Tensor:
        """LR - A(x): (B,C,h,w)."""
        return self.lr - self.degradation.forward(x)

    def backproject(self, residual: Tensor, spread: Tensor) -> Tensor:
        """The prior's covariance times the adjoint: what a residual (B,C,h,w), in units of its variance, says of x."""
        return (self.share * spread * self.hr_unit) ** 2 * self.degradation.adjoint(residual)

    def bound(self, spread: Tensor) -> Tensor:
        """A diagonal that bounds the covariance of LR images, where the unit changes little: (B,C,h,w)."""
        return self.variance + self.gain * (self.share * spread * self.unit) ** 2

    def step(self, x: Tensor, spread: Tensor) -> Tensor:
        """One step from x towards the posterior's mean, which does not go beyond it."""
        return x + self.backproject(self.residual(x) / self.bound(spread), spread)

    def solve(self, x: Tensor, spread: Tensor, iterations: int) -> Tensor:
        """The posterior's mean, the prior's being x, as far as `iterations` of conjugate gradients get.

        x + C A^T (A C A^T + N)^-1 (LR - A x), by the Jacobi preconditioned method (Shewchuk 1994, B3). An image that
        fits already stays as it is.
        """
        residual, tiny = self.residual(x), torch.finfo(torch.float32).tiny
        solution, bound = torch.zeros_like(residual), self.bound(spread)
        direction = scaled = residual / bound
        size = (residual * scaled).sum((1, 2, 3), keepdim=True)
        for _ in range(iterations):
            image = self.degradation.forward(self.backproject(direction, spread)) + self.variance * direction
            rate = size / (direction * image).sum((1, 2, 3), keepdim=True).clamp(min=tiny)
            solution = solution + rate * direction
            residual = residual - rate * image
            scaled, before = residual / bound, size
            size = (residual * scaled).sum((1, 2, 3), keepdim=True)
            direction = scaled + size / before.clamp(min=tiny) * direction
        return x + self.backproject(solution, spread)


class PriorStep(nn.Module):
    """What is seen in a step is added to the memory, and residual blocks work on it."""

    def __init__(self, settings: UnrolledSettings, scale: int, channels: int) -> None:
        super().__init__()
        fields = settings.fields
        self.image = GroupDownsampling(channels, fields, scale)
        self.residual = GroupConvolution(3 * channels, fields, 3, lift=True)
        self.blocks = nn.ModuleList(_block(fields) for _ in range(settings.blocks))

    def forward(self, x: Tensor, seen: Tensor, memory: Tensor | None) -> Tensor:
        """(B,C,scale*h,scale*w), (B,3C,h,w) and (B,8F,h,w) -> (B,8F,h,w)."""
        features = self.image(x) + self.residual(seen)
        if memory is not None:
            features = features + memory
        for block in self.blocks:
            features = features + block(features)
        return features


def check_scales(scales: tuple[int, ...], scale: int) -> tuple[int, ...]:
    """The scales that a network serves, in ascending order: `scales`, of which `scale` is one, or `scale` alone.

    Raises `InputError` if it is none of them, or if they do not divide the largest.
    """
    found = tuple(sorted(set(scales or (scale,))))
    if scale not in found or found[0] < 2 or any(found[-1] % one for one in found):
        listed = ", ".join(map(str, found))
        raise InputError(f"scales: expected {scale} and others from 2 on that divide the largest, found {listed}")
    return found


def _block(fields: int) -> nn.Sequential:
    last = GroupConvolution(fields, fields, 3)
    with torch.no_grad():
        last.weight.mul_(0.3)  # many blocks in a row start as little more than none
    return nn.Sequential(GroupPReLU(fields), GroupConvolution(fields, fields, 3), GroupPReLU(fields), last)


class Unrolled(nn.Module):
    """Steps towards the data and of the learnt prior, in turns."""

    knows_degradation = True

    def __init__(self, settings: UnrolledSettings, scale: int, channels: int) -> None:
        """Raises `InputError` if `scale` is not one of those in `settings`, or these do not divide the largest."""
        super().__init__()
        self.settings = settings
        self.scales = check_scales(settings.scales, scale)
        self.finest = max(self.scales)
        self.prior = nn.ModuleList(PriorStep(settings, self.finest, channels) for _ in range(settings.steps))
        self.log_spread = nn.Parameter(torch.zeros(settings.steps + 1))
        self.upsampling = nn.ModuleList(self._upsampling(channels) for _ in range(settings.steps))
        self.predicts_sigma = settings.predict_sigma
        if settings.predict_sigma:  # last, so that all else starts as it does without
            self.error = _block(settings.fields)
            self.sigma = self._upsampling(channels)

    def _upsampling(self, channels: int) -> nn.Sequential:
        fields = self.settings.fields
        return nn.Sequential(GroupPReLU(fields), GroupUpsampling(fields, channels, self.finest))

    def forward(self, lr: Tensor, degradation: Degradation, first_guess: Tensor | None = None) -> Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32, the scale being that of `degradation`; from `first_guess`, or
        None: that of `guess`."""
        return self._answer(lr, degradation, first_guess)[0]

    def guess(self, lr: Tensor, degradation: Degradation) -> Tensor:
        """(B,C,scale*h,scale*w) float32: what the steps start from."""
        return Interpolation("bicubic", degradation.operator.scale)(lr)

    def mean_and_sigma(
        self, lr: Tensor, degradation: Degradation, first_guess: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the 1-sigma error of its pixels, of the same shape; with `predict_sigma` only.

        The features do not learn from the error: the image is the same with and without it.
        """
        image, memory, unit = self._answer(lr, degradation, first_guess)
        features = memory.detach()
        sigma = functional.softplus(self.sigma(features + self.error(features)).float())
        sigma = functional.avg_pool2d(sigma, self.finest // degradation.operator.scale)
        return image, unit * (LEAST_SIGMA + sigma)

    def _answer(
        self, lr: Tensor, degradation: Degradation, first_guess: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The image, the memory after the last step, and the unit of HR images."""
        data, scale = DataTerm(lr, degradation, self.settings, self.finest), degradation.operator.scale
        x = self.guess(data.lr, degradation) if first_guess is None else first_guess
        spreads, finer = self.log_spread.exp(), self.finest // scale
        contrast = torch.cat([data.lr / data.unit, (data.unit / degradation.noise.float()).log()], dim=1)
        memory: Tensor | None = None
        for prior, correction, spread in zip(self.prior, self.upsampling, spreads[:-1], strict=True):
            x = data.step(x, spread)
            seen = torch.cat([data.residual(x) / data.variance.sqrt(), contrast], dim=1)
            memory = prior(functional.interpolate(x / data.hr_unit, scale_factor=finer), seen, memory)
            x = x + data.hr_unit * functional.avg_pool2d(correction(memory).float(), finer)
        assert memory is not None  # there is at least one step
        return data.solve(x, spreads[-1], self.settings.iterations), memory, data.hr_unit
