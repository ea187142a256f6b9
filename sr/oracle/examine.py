"""What the data say at a point of the parameters: the model there, its errors and how well it fits.

With N the noise, J and H the derivatives of the LR and HR images by the parameters, whose prior has unit covariance,
the posterior covariance of a linear model is C = (J^T N^-1 J + 1)^-1 and H C H^T that of the HR image. At the solution
of a fit this is its error; at the truth it is the Cramer-Rao bound with the prior's information (van Trees 1968,
sect. 2.4), and for a field of substructure, which enters linearly, the error of the best linear estimate (LMMSE).
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from simulate.torch_engine.imaging import bin_sum

from .imaging import Imager, Linearised
from .objective import Images
from .parameters import Parameters
from .substructure import DeflectionModes

ACCEPTED_SIGMAS = 4.0
BRIGHT_SIGMAS = 1.0
"""Pixels in which the model has more light than this are judged by themselves, too."""
MODES_AT_ONCE = 64
MODE_RAYS = 2
"""Rays along an HR pixel, of the finer ones, with which derivatives by modes are computed: these are smooth."""


@dataclass(frozen=True, eq=False)
class Fit:
    """B models and their images; P parameters."""

    u: Tensor
    """(B,P) the parameters as standard normal numbers: see `Parameters`"""
    covariance: Tensor
    """(B,P,P) of u"""
    amplitudes: Tensor
    """(B,K) of the modes of substructure; K is 0 without them"""
    chi2: Tensor
    """(B,)"""
    degrees_of_freedom: Tensor
    """(B,) pixels less the parameters that the data determine, the trace of Fisher matrix x covariance"""
    accepted: Tensor
    """(B,) bool: chi^2 is at most `ACCEPTED_SIGMAS` of its standard deviations above its expectation, in all pixels
    and in the bright ones alone"""
    log_evidence: Tensor
    """(B,) natural logarithm of the probability of the data under this kind of model, but for a constant of the data:
    -(chi^2 + |u|^2 + ln det C^-1) / 2 (Laplace's approximation; MacKay 2003, sect. 28.1)"""
    lr: Tensor
    """(B,h,w) flux per LR pixel"""
    hr: Tensor
    """(B,H,W) flux per HR pixel"""
    hr_sigma: Tensor
    """(B,H,W) its 1-sigma error"""

    @property
    def cost(self) -> Tensor:
        """(B,) minus twice the logarithm of the posterior."""
        return self.chi2 + self.u.square().sum(1) + self.amplitudes.square().sum(1)

    def select(self, rows: Tensor) -> "Fit":
        """Those at `rows`."""
        return Fit(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    def replace(self, rows: Tensor, others: "Fit") -> "Fit":
        """A copy with `others` at `rows`."""
        values = {}
        for one in fields(self):
            values[one.name] = getattr(self, one.name).clone()
            values[one.name][rows] = getattr(others, one.name)
        return Fit(**values)


def join(fits: list[Fit]) -> Fit:
    """Fits one after the other."""
    return Fit(**{one.name: torch.cat([getattr(fit, one.name) for fit in fits]) for one in fields(Fit)})


def physical_covariance(parameters: Parameters, u: Tensor, covariance: Tensor) -> Tensor:
    """(B,P,P) covariance of the free parameters in their own units, to first order."""
    with torch.enable_grad():
        numbers = u.detach().requires_grad_()
        values = parameters.physical(numbers)
        slopes = [
            torch.autograd.grad(values[name].sum(), numbers)[0][:, place] for place, name in enumerate(parameters.names)
        ]
    slope = torch.stack(slopes, 1)
    return slope[:, :, None] * covariance * slope[:, None, :]


def examine(
    imager: Imager, images: Images, u: Tensor, modes: DeflectionModes | None = None, amplitudes: Tensor | None = None
) -> Fit:
    """The models at u (B,P) and, with `modes`, at their `amplitudes` (B,K); None: at zero."""
    if modes is not None and amplitudes is None:
        amplitudes = u.new_zeros(len(u), len(modes.maps))
    elif amplitudes is None:
        amplitudes = u.new_zeros(len(u), 0)
    with torch.no_grad():
        return join(
            [
                _examine(imager, images.select(row), u[row], modes, amplitudes[row])
                for row in torch.arange(len(u), device=u.device).split(1)
            ]
        )


def _examine(imager: Imager, images: Images, u: Tensor, modes: DeflectionModes | None, amplitudes: Tensor) -> Fit:
    field = None if modes is None else modes.field(amplitudes, imager.grid.rays).to(imager.dtype)
    linear = imager.linearise(u, field)
    by_lr, by_hr = linear.derivatives(imager.lr)[0], linear.derivatives(imager.hr)[0]
    if modes is not None:
        more_lr, more_hr = _mode_derivatives(imager, linear, modes)
        by_lr, by_hr = torch.cat([by_lr, more_lr], 1), torch.cat([by_hr, more_hr], 1)
    lr, hr = imager.lr(linear.light), imager.hr(linear.light)
    jacobian = by_lr.double() / images.noise.flatten()[:, None]
    fisher = jacobian.T @ jacobian
    factor = torch.linalg.cholesky(fisher + torch.eye(len(fisher), dtype=fisher.dtype, device=fisher.device))
    covariance = torch.cholesky_inverse(factor)
    variance = ((by_hr.double() @ covariance) * by_hr).sum(1).view_as(hr)
    determined = (fisher * covariance).sum()
    squares = ((lr - images.lr) / images.noise) ** 2
    counted = torch.isfinite(images.noise)
    bright = counted & (lr / images.noise > BRIGHT_SIGMAS)
    chi2 = squares.sum((1, 2))
    cost = chi2 + u.square().sum(1) + amplitudes.square().sum(1)
    macro = u.shape[1]
    return Fit(
        u=u,
        covariance=covariance[None, :macro, :macro],
        amplitudes=amplitudes,
        chi2=chi2,
        degrees_of_freedom=counted.sum((1, 2)) - determined,
        accepted=_plausible(squares, counted, determined) & _plausible(squares, bright, determined),
        log_evidence=-(cost + 2 * factor.diagonal().log().sum()) / 2,
        lr=lr,
        hr=hr,
        hr_sigma=variance.clamp(min=0).sqrt(),
    )


def _mode_derivatives(imager: Imager, linear: Linearised, modes: DeflectionModes) -> tuple[Tensor, Tensor]:
    """(n,K) and (N,K) derivatives of one lens's LR and HR pixels by the amplitudes of the modes."""
    rays_per_pixel, parts = MODE_RAYS * imager.optics.scale, []
    step = imager.rays_per_pixel // rays_per_pixel if imager.rays_per_pixel % rays_per_pixel == 0 else 1
    coarser = replace(imager, rays_per_pixel=imager.rays_per_pixel // step)
    gradient = bin_sum(linear.by_source_place[0], step).float()
    for first in range(0, len(modes.maps), MODES_AT_ONCE):
        maps = modes.on_rays(coarser.grid.rays, first, first + MODES_AT_ONCE)
        light = -(maps.float() * gradient).sum(1)
        parts.append((coarser.lr(light).flatten(1).T, coarser.hr(light).flatten(1).T))
    return torch.cat([lr for lr, _ in parts], 1), torch.cat([hr for _, hr in parts], 1)


def _plausible(squares: Tensor, counted: Tensor, determined: Tensor) -> Tensor:
    """(B,) whether the squares (B,h,w) of the counted pixels sum to what chi^2 can be."""
    degrees = (counted.sum((1, 2)) - determined).clamp(min=1)
    return (squares * counted).sum((1, 2)) <= degrees + ACCEPTED_SIGMAS * (2 * degrees).sqrt()
