"""What an image leaves over: of the LR image once it is seen through the true operator, and of the bare macro-model.

Scores are float64, one a scene; NaN means that a score is not defined for that scene, and `metrics.summarise` leaves it
out.
"""

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional

from .operators import ForwardOperator

LAGS = [(0, 1), (0, 2), *((dy, dx) for dy in (1, 2) for dx in range(-2, 3))]
"""Half of the pixels of a 5x5 window around one; the other half has the same pairs."""


def consistency_scores(
    images: Tensor, real: Tensor, lr: Tensor, noise: Tensor, operator: ForwardOperator
) -> dict[str, Tensor]:
    """The residual z = (A(image) - lr) / noise of (N,1,H,W) images at LR pixels that are known.

    "chi2_per_pixel": mean of z^2; 1 +- sqrt(2 / pixels) for the truth. More: the image contradicts the data; less: it
    follows their noise. "residual_autocorrelation": mean product of z with its four neighbours over that of z^2;
    0 +- sqrt(1 / (2 pixels)) for the truth, above 0 for an image that is too smooth. "residual_whiteness":
    (Q - 12) / sqrt(24), with Q the sum of pairs x correlation^2 over LAGS, chi squared distributed for white noise (Box
    & Pierce 1970, JASA 65, 1509); 0 +- 1 for the truth.

    Known is what lies `operator.margin` from the edge and from HR pixels that are not `real`; NaN if nothing does. The
    noise of drizzled images is correlated, and with it the truth's own residual: compare with that.
    """
    scale, margin = operator.scale, operator.margin
    images = torch.where(real, images.double(), 0.0)
    unreal = functional.max_pool2d((~real).double(), scale)
    known = functional.max_pool2d(unreal, 2 * margin + 1, stride=1, padding=margin)[:, 0] == 0
    known[:, :margin] = known[:, known.shape[1] - margin :] = False
    known[..., :margin] = known[..., known.shape[2] - margin :] = False
    residual = torch.where(known, (operator(images) - lr)[:, 0] / noise[:, 0], 0.0)
    pixels = known.double()
    chi2 = (residual**2).sum((1, 2)) / pixels.sum((1, 2))
    products = torch.stack([_lagged_sum(residual, *lag) for lag in LAGS])
    counts = torch.stack([_lagged_sum(pixels, *lag) for lag in LAGS])
    nearest = [LAGS.index((0, 1)), LAGS.index((1, 0))]
    total = (products**2 / counts.clamp(min=1)).sum(0) / chi2**2
    return {
        "chi2_per_pixel": chi2,
        "residual_autocorrelation": products[nearest].sum(0) / counts[nearest].sum(0) / chi2,
        "residual_whiteness": (total - len(LAGS)) / sqrt(2 * len(LAGS)),
    }


def _lagged_sum(values: Tensor, dy: int, dx: int) -> Tensor:
    """Sum over pixels of (N,h,w) of the product with the pixel dy down and dx to the right: (N,)."""
    height, width = values.shape[-2:]
    here = values[:, : height - dy, max(0, -dx) : width - max(0, dx)]
    there = values[:, dy:, max(0, dx) : width + min(0, dx)]
    return (here * there).sum((1, 2))


def substructure_scores(images: Tensor, truth: Tensor, macro: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How much of the substructure's imprint, truth - macro, is in the residual image - macro, over `mask` (all images
    (N,1,H,W)). NaN where the scene has no substructure.

    "substructure_error": |image - truth| / |truth - macro|. An image of the macro-model, which shows nothing of it, has
    1. "substructure_correlation": the cosine of both residuals, 1 for the truth; the imprint scaled by any factor has 1
    as well, and what has nothing to do with it has 0.

    `macro` has the scene's own macro-model, not the one that fits the truth best: what a change of macro-model could
    take up of the imprint, most of all a change of size of the ring, counts as imprint here.
    """
    images, truth, macro = (torch.where(mask, one.double(), 0.0) for one in (images, truth, macro))
    residual, imprint = images - macro, truth - macro
    size, strength = ((one**2).sum((1, 2, 3)).sqrt() for one in (residual, imprint))
    product = (residual * imprint).sum((1, 2, 3))
    return {
        "substructure_error": ((images - truth) ** 2).sum((1, 2, 3)).sqrt() / strength,
        "substructure_correlation": product / (size * strength).clamp(min=torch.finfo(size.dtype).tiny),
    }
