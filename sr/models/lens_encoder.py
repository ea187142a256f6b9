"""Unsupervised super-resolution by a differentiable lens: no HR image has a part in the training, or in the answer.

An encoder sees the whole LR image in units of its noise and gives the macro-model of a lens, a power law in shear, and
its source, a Sersic profile; all are free, with wide priors. A ray-tracer renders them as the HR instrument sees them,
and the instruments' operator A makes an LR image of that: what is learnt from is its chi^2 against the LR image, with
the PSF and the noise in it. It is an autoencoder whose decoder is physics (Aragon-Calvo & Carvajal 2020,
arXiv:1907.03957).

The answer starts from the encoder's, the best of what it sees in the image from all sides: Levenberg-Marquardt steps
lower the same chi^2 of this one image. Then a data step puts back what the parametric lens has not
(`sr.models.unrolled.DataTerm`): the rendered image is the prior's mean, and the prior's spread is what the chi^2 of the
rendered image says.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional

from simulate.settings import Settings

from ..oracle.descent import solve_positive
from .d4 import ORDER, act, inverse
from .lens_renderer import PARAMETERS, LensRenderer
from .unrolled import DataTerm, UnrolledSettings

if TYPE_CHECKING:
    from ..degradation import Degradation
    from ..samples import Batch

DATA_TERM = UnrolledSettings()
POOLED = 4
"""Places along each axis that features are averaged to: where things are stays known, whatever the frame's size."""
FIRST_DAMPING = 1e-2
LONGEST_STEP = 1.0
"""In any parameter, in standard deviations of its prior."""


class LensEncoderSettings(Settings):
    """Size of the encoder, and what is done with its answer."""

    features: PositiveInt = 64
    """After the first halving of the image; twice as many after each of the next."""
    hidden: PositiveInt = 512
    supersampling: PositiveInt = 2
    """Rays along an axis of an HR pixel in the answer; training takes one."""
    hr_psf_fwhm: PositiveFloat = 1.8
    """Of the HR instrument, in HR pixels; that of HST's ACS in F814W, 0.09" on pixels of 0.05"."""
    refinements: NonNegativeInt = 10
    """Levenberg-Marquardt steps on the chi^2 of the image that is asked for."""
    iterations: NonNegativeInt = 15
    """Of conjugate gradients at the end."""


class LensEncoder(nn.Module):
    """LR image -> lens and source -> HR image."""

    knows_degradation = True
    unsupervised = True
    whole_images = True

    def __init__(self, settings: LensEncoderSettings, scale: int, channels: int) -> None:
        super().__init__()
        self.settings, self.scale = settings, scale
        widths = [2 * channels + 2, *(settings.features * times for times in (1, 2, 2, 4))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(widths[-1] * POOLED**2, settings.hidden)
        self.upsampling = nn.Linear(settings.hidden, len(PARAMETERS))  # all that makes HR pixels of features
        with torch.no_grad():
            self.upsampling.weight.mul_(0.1)
            self.upsampling.bias.zero_()

    def forward(self, lr: Tensor, degradation: Degradation) -> Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        data = DataTerm(lr, degradation, DATA_TERM)
        u = self.start(data)
        if self.settings.refinements:
            u = self.refine(u, data)
        image = self.render(u, data, self.settings.supersampling)
        return data.solve(image, excess_spread(image, data), self.settings.iterations)

    def training_loss(self, batch: Batch, generator: Generator, degradation: Degradation) -> Tensor:  # noqa: ARG002
        """The mean over images of ln((chi^2 + |u|^2) / N), N being the LR pixels; `batch.hr` has no part in it.

        The logarithm keeps bright images from outweighing all others: their chi^2 is 10^4 times as large at first.
        """
        data = DataTerm(batch.lr, degradation, DATA_TERM)
        u = self.encode(data.lr / data.variance.sqrt())
        image = self.render(u, data, 1)
        return (cost(residuals(image, data), u) / batch.lr[0].numel()).log().mean()

    def render(self, u: Tensor, data: DataTerm, supersampling: int) -> Tensor:
        """(B,C,scale*h,scale*w) lenses at their best brightness, from u (B,P)."""
        image = self.renderer(data.lr, supersampling)(u)
        return brightness(image, data)[0] * image

    def renderer(self, lr: Tensor, supersampling: int) -> LensRenderer:
        """What renders lenses in the frame of `lr`."""
        return LensRenderer(lr.shape[-2], lr.shape[-1], self.scale, supersampling, self.settings.hr_psf_fwhm)

    def start(self, data: DataTerm) -> Tensor:
        """(B,P): of what the encoder sees in the image and in its mirror images and quarter turns, what fits best."""
        contrast = data.lr / data.variance.sqrt()
        best, least = contrast.new_zeros(len(contrast), len(PARAMETERS)), contrast.new_full((len(contrast),), math.inf)
        for element in range(ORDER):
            u = turn(inverse(element), self.encode(act(element, contrast).contiguous()))
            found = cost(residuals(self.render(u, data, 1), data), u)
            best, least = torch.where((found < least)[:, None], u, best), torch.minimum(found, least)
        return best

    def encode(self, contrast: Tensor) -> Tensor:
        """(B,P) float32 parameters, in units of their priors, of LR images (B,C,h,w) in units of their noise."""
        peak = contrast.amax((1, 2, 3), keepdim=True).clamp(min=1)
        batch, _, height, width = contrast.shape
        y = torch.linspace(-1, 1, height, device=contrast.device)[:, None].expand(batch, 1, height, width)
        x = torch.linspace(-1, 1, width, device=contrast.device).expand(batch, 1, height, width)
        features = self.body(torch.cat([contrast.asinh(), 4 * contrast / peak, x, y], 1))
        pooled = functional.adaptive_avg_pool2d(features, POOLED).flatten(1)
        return self.upsampling(functional.silu(self.hidden(pooled))).float()

    def refine(self, u: Tensor, data: DataTerm) -> Tensor:
        """(B,P): as far as Levenberg-Marquardt steps get from u (Marquardt 1963, SIAM J. 11, 431), towards less chi^2.

        Images always have their best brightness (variable projection, with the Jacobian of Kaufman 1975, BIT 15, 49).
        """
        renderer, coarse = self.renderer(data.lr, self.settings.supersampling), self.renderer(data.lr, 1)
        identity = torch.eye(len(PARAMETERS), dtype=torch.float64, device=u.device)

        def linearise(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            image = renderer(u)
            factor, seen = brightness(image, data)
            residual = residuals(factor * image, data).flatten(2)[:, :, None]  # (B,C,1,pixels)
            moved = factor[:, :, None] * data.degradation.forward(coarse.derivatives(u))[:, None]
            moved = (moved / data.variance.sqrt()[:, :, None]).flatten(3)  # (B,C,P,pixels)
            along = functional.normalize(seen.flatten(2), dim=2)[:, :, None]
            jacobian = -(moved - (moved * along).sum(3, keepdim=True) * along).double()
            gradient = (jacobian * residual).sum((1, 3)) + u
            return cost(residual, u), gradient, (jacobian @ jacobian.mT).sum(1) + identity

        now, gradient, normal = linearise(u)
        damping = torch.full_like(now, FIRST_DAMPING)[:, None]
        for _ in range(self.settings.refinements):
            damped = normal + torch.diag_embed(damping * normal.diagonal(dim1=1, dim2=2))
            step = -solve_positive(damped, gradient)
            step = step * (LONGEST_STEP / step.abs().amax(1, keepdim=True)).clamp(max=1)
            trial = (u + step).float()
            found = linearise(trial)
            lower = found[0] < now
            u = torch.where(lower[:, None], trial, u)
            now, gradient = torch.where(lower, found[0], now), torch.where(lower[:, None], found[1], gradient)
            normal = torch.where(lower[:, None, None], found[2], normal)
            damping = (damping * torch.where(lower[:, None], 0.2, 5.0)).clamp(1e-7, 1e7)
        return u


def turn(element: int, u: Tensor) -> Tensor:
    """(B,P) of the lenses that are `d4.act(element, ...)` of those of u: priors know no direction."""
    values = dict(zip(PARAMETERS, u.unbind(1), strict=True))
    for x, y in (("center_x", "center_y"), ("source_x", "source_y")):
        across = -values[x] if element & 1 else values[x]
        down = -values[y] if element & 2 else values[y]
        values[x], values[y] = (down, across) if element & 4 else (across, down)
    for first, second in (("e1", "e2"), ("gamma1", "gamma2"), ("source_e1", "source_e2")):
        if element in (1, 2, 5, 6):
            values[second] = -values[second]
        if element & 4:
            values[first] = -values[first]
    return torch.stack([values[name] for name in PARAMETERS], 1)


def brightness(image: Tensor, data: DataTerm) -> tuple[Tensor, Tensor]:
    """For `image` (B,1,H,W): the factors (B,C,1,1), not negative, that bring it closest to the LR images; and A of it
    in units of the noise, (B,C,h,w)."""
    sigma = data.variance.sqrt()
    seen = data.degradation.forward(image) / sigma
    product, square = ((one * seen).sum((2, 3), keepdim=True) for one in (data.lr / sigma, seen))
    return (product / square.clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=0), seen


def residuals(image: Tensor, data: DataTerm) -> Tensor:
    """LR - A(image) in units of the noise, (B,C,h,w)."""
    return data.residual(image) / data.variance.sqrt()


def cost(residual: Tensor, u: Tensor) -> Tensor:
    """(B,) chi^2 and |u|^2: -2 ln of the posterior."""
    return residual.square().flatten(1).sum(1, dtype=torch.float64) + u.square().sum(1)


def excess_spread(image: Tensor, data: DataTerm) -> Tensor:
    """(B,1,1,1): the spread of the prior around `image` that makes its chi^2 as large as it is; 0 if it fits.

    The expectation of chi^2 is N + spread^2 sum of diag(A C A^T) / variance (C at unit spread), where the unit that C
    is in changes little over the PSF.
    """
    delta = torch.zeros_like(data.lr[:1, :1])
    delta[..., delta.shape[-2] // 2, delta.shape[-1] // 2] = 1
    gain = data.degradation.adjoint(delta).square().sum((1, 2, 3), keepdim=True)
    excess = (residuals(image, data).square() - 1).sum((1, 2, 3), keepdim=True).clamp(min=0)
    return (excess / (gain * data.unit**2 / data.variance).sum((1, 2, 3), keepdim=True)).sqrt()
