"""Where fits start: draws from the prior, of which those are taken that resemble the image. The truth has no part."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .imaging import Imager
from .parameters import Parameters, prior_number, prior_value

CHUNK = 32
MAGNITUDES = ("source.magnitude", "lens_light.magnitude")
FARTHEST_START = 2.5
"""A magnitude that the image asks for is taken at most this far from the middle of its prior."""


@dataclass(frozen=True, eq=False)
class Library:
    """N lenses drawn from the prior, seen by the LR instrument without noise."""

    u: Tensor
    """(N,P) float64"""
    images: Tensor
    """(N,C,pixels) float32: the source's light and, if the lens shines (C = 2), the lens's."""


def draw_library(imager: Imager, count: int, generator: Generator) -> Library:
    """`count` draws; `generator` is one of the CPU."""
    u = torch.randn(count, len(imager.parameters.names), generator=generator, dtype=torch.float64).to(imager.device)
    with torch.no_grad():
        images = [imager.lr(imager.components(part)).flatten(2).float() for part in u.split(CHUNK)]
    return Library(u, torch.cat(images))


def choose_starts(library: Library, parameters: Parameters, lr: Tensor, weight: Tensor, count: int) -> Tensor:
    """(B,count,P): for each image the draws with the least chi^2, whatever their brightness, made as bright as it is.

    `lr` and `weight` (inverse variance) are (B,pixels). Fluxes enter the images linearly: the best ones, not negative,
    are solved for.
    """
    found = [_brighten(part.double(), lr, weight) for part in library.images.split(CHUNK)]
    gain, factors = (torch.cat(one, 1) for one in zip(*found, strict=True))
    best = gain.topk(min(count, gain.shape[1]), 1).indices
    starts = library.u[best].clone()
    for component, name in enumerate(MAGNITUDES[: library.images.shape[1]]):
        if name not in parameters.free:
            continue
        place, prior = parameters.names.index(name), parameters.free[name]
        factor = factors[..., component].gather(1, best).clamp(min=1e-6)
        magnitude = prior_value(prior, starts[..., place]) - 2.5 * torch.log10(factor)
        numbers = starts.new_tensor([prior_number(prior, one) for one in magnitude.flatten().tolist()])
        starts[..., place] = numbers.view_as(magnitude).clamp(-FARTHEST_START, FARTHEST_START)
    return starts


def _brighten(images: Tensor, lr: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """How much of chi^2 images (n,C,pixels) explain at their best brightness (B,n), and the factors for it (B,n,C)."""
    product = torch.einsum("ncp,bp->bnc", images, weight * lr)
    squares = torch.einsum("ncp,bp->bnc", images**2, weight).clamp(min=torch.finfo(torch.float64).tiny)
    if images.shape[1] == 1:
        factors = (product / squares).clamp(min=0)
        return (factors * product).sum(-1), factors
    cross = torch.einsum("np,bp->bn", images[:, 0] * images[:, 1], weight)
    factors = _two_factors(product, squares, cross)
    return (2 * factors * product - factors**2 * squares).sum(-1) - 2 * factors.prod(-1) * cross, factors


def _two_factors(product: Tensor, squares: Tensor, cross: Tensor) -> Tensor:
    """(B,N,2) factors, not negative, of least squares with two images: both, or the better one alone."""
    determinant = (squares.prod(-1) - cross**2).clamp(min=torch.finfo(torch.float64).tiny)
    both = (product * squares.flip(-1) - product.flip(-1) * cross[..., None]) / determinant[..., None]
    alone = (product / squares).clamp(min=0)
    better = (alone * product).argmax(-1, keepdim=True)
    one = torch.zeros_like(alone).scatter(-1, better, alone.gather(-1, better))
    return torch.where((both >= 0).all(-1, keepdim=True), both, one)
