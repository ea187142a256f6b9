"""What a network is trained to make small: a sum of terms with weights, over real pixels, in float32.

All terms see images in the network's domain (surface brightness) and count only real pixels: where() comes before the
penalty, not after, because a value that is not finite must not reach the gradient. Nothing here waits for the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn import functional

from simulate.errors import InputError
from simulate.shards import Pairs

from .metrics import SSIM_WINDOW, data_range_of, ssim_map
from .normalisation import Normalisation
from .operators import ForwardOperator, forward_operator
from .samples import Batch, load_samples, undo_transform

LossName = Literal["l1", "mse", "charbonnier", "ssim", "fourier", "chi2", "flux", "data_consistency", "content"]


def _named(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


LossWeights = Annotated[
    dict[LossName, Annotated[float, Field(gt=0)]], BeforeValidator(_named), Field(min_length=1, validate_default=True)
]
"""A term's name, or weights by name: `l1`, or `{l1: 1, ssim: 0.1}`."""

LossTerm = Callable[[Tensor, Batch], Tensor]
"""(output (B,1,H,W) float32, batch) -> scalar."""

CHARBONNIER_EPSILON = 1e-3  # Lai et al. 2017, arXiv:1704.03915, section 3.4


class ContentEncoder(Protocol):
    """A network whose features say what is in an image."""

    def features(self, images: Tensor) -> list[Tensor]:
        """(B,1,H,W) images in the network's domain -> features of any shapes."""
        ...


@dataclass(frozen=True)
class LossContext:
    """What some terms have to know of the data, in the network's domain and on the device of the training."""

    data_range: float | None = None
    """For `ssim`."""
    operator: ForwardOperator | None = None
    """For `data_consistency`, and for networks that know it; its kernels are in the order of the samples."""
    content: ContentEncoder | None = None
    """For `content`."""


NO_CONTEXT = LossContext()


def loss_context(
    weights: Mapping[LossName, float],
    pairs: Pairs,
    normalisation: Normalisation,
    target: Literal["hr", "hr_noisy"],
    device: torch.device,
    knows_degradation: bool = False,
) -> LossContext:
    """What the terms of `weights` have to know of the training set `pairs`; not the content encoder.

    `knows_degradation`: the operator is there in any case, for a network that is told it.
    """
    data_range = operator = None
    if "ssim" in weights:
        samples = load_samples(pairs, normalisation, target, torch.device("cpu"))
        data_range = data_range_of(samples.hr.numpy(), samples.mask.numpy())
    if "data_consistency" in weights or knows_degradation:
        operator = forward_operator(pairs).to(device, torch.float32)
    return LossContext(data_range, operator)


def _squared(difference: Tensor) -> Tensor:
    return difference**2


def _charbonnier(difference: Tensor) -> Tensor:
    return torch.sqrt(difference**2 + CHARBONNIER_EPSILON**2)


_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "mse": _squared, "charbonnier": _charbonnier}


def pixel_loss(name: Literal["l1", "mse", "charbonnier"]) -> LossTerm:
    """The mean penalty over the pixels whose mask is True. A batch without a real pixel gives 0, as for all terms."""
    penalty = _PENALTIES[name]

    def loss(output: Tensor, batch: Batch) -> Tensor:
        return (penalty(_difference(output, batch)) * batch.mask).sum() / _count(batch.mask)

    return loss


def ssim_loss(data_range: float) -> LossTerm:
    """1 - SSIM as in `metrics.ssim`, averaged over all windows of the batch whose central pixel is real."""

    def loss(output: Tensor, batch: Batch) -> Tensor:
        if min(output.shape[-2:]) < SSIM_WINDOW:
            raise InputError(
                f"loss ssim: needs crops of at least {SSIM_WINDOW} HR pixels, found {min(output.shape[-2:])}; "
                "use a larger crop_size"
            )
        found, truth = (torch.where(batch.mask, one, 0.0) for one in (output, batch.hr))
        with torch.autocast(output.device.type, enabled=False):  # variances are small differences of large numbers
            similarity, centres = ssim_map(found, truth, batch.mask.to(output.dtype), data_range)
        return ((1 - similarity) * centres).sum() / _count(centres)

    return loss


def fourier_loss(output: Tensor, batch: Batch) -> Tensor:
    """L1 distance of the two-dimensional spectra, complex, and so of amplitudes and phases (normalised as Parseval's).

    Cho et al. 2021, arXiv:2108.05054, eq. 9; for super-resolution Fuoli et al. 2021, arXiv:2106.00783.
    """
    return torch.fft.fft2(_difference(output, batch), norm="ortho").abs().sum() / _count(batch.mask)


def chi_squared_loss(output: Tensor, batch: Batch) -> Tensor:
    """The mean of ((output - hr) / sigma)^2, with sigma the 1-sigma noise of the LR pixel that the HR pixel is in."""
    sigma = torch.where(batch.mask, _on_hr_pixels(batch.noise, output), 1.0)
    return ((_difference(output, batch) / sigma) ** 2).sum() / _count(batch.mask)


def flux_loss(output: Tensor, batch: Batch) -> Tensor:
    """Squared relative error of an image's total flux, averaged over images.

    The flux that it is relative to has the noise of the LR image's total added in quadrature: an empty image has none.
    """
    scale = output.shape[-1] // batch.lr.shape[-1]
    error, total = (one.sum((1, 2, 3)) for one in (_difference(output, batch), torch.where(batch.mask, batch.hr, 0.0)))
    variance = torch.where(batch.mask, _on_hr_pixels(batch.noise, output) ** 2, 0.0).sum((1, 2, 3)) * scale**2
    return (error**2 / (total**2 + variance).clamp(min=torch.finfo(error.dtype).tiny)).mean()


def data_consistency_loss(operator: ForwardOperator) -> LossTerm:
    """Chi squared per pixel of the LR images, given the output: the mean of ((A(output) - lr) / noise)^2.

    It is 1 if the output is the truth. Counts LR pixels `operator.margin` away from the edge and from HR pixels that
    are not real. The images are turned back first, since a PSF need not be symmetric.
    """

    def loss(output: Tensor, batch: Batch) -> Tensor:
        scale, margin = operator.scale, operator.margin
        height, width = batch.lr.shape[-2:]
        if min(height, width) <= 2 * margin:
            raise InputError(
                f"loss data_consistency: the PSFs carry light over {margin} LR pixels, and crops of "
                f"{min(height, width)} have no pixel that is known; use a crop_size of {2 * margin + 1} or more"
            )
        seen = torch.where(batch.mask, output, 0.0)
        seen, mask, lr, noise = (
            undo_transform(one, batch.symmetry) for one in (seen, batch.mask.to(output.dtype), batch.lr, batch.noise)
        )
        whole = -functional.max_pool2d(-mask, scale)  # 1 where all HR pixels of an LR pixel are real
        known = -functional.max_pool2d(-whole, 2 * margin + 1, stride=1) > 0
        inside = (..., slice(margin, height - margin), slice(margin, width - margin))
        residual = operator(seen, batch.rows) / scale**2 - lr
        residual = torch.where(known, residual[inside], 0.0) / torch.where(known, noise[inside], 1.0)
        return (residual**2).sum() / _count(known)

    return loss


def content_loss(encoder: ContentEncoder) -> LossTerm:
    """The mean squared distance of features, averaged over layers (Ledig et al. 2017, arXiv:1609.04802, eq. 5)."""

    def loss(output: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = encoder.features(torch.where(batch.mask, batch.hr, 0.0))
        found = encoder.features(torch.where(batch.mask, output, 0.0))
        distances = [((f.to(output.dtype) - w) ** 2).mean() for f, w in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()

    return loss


def _difference(output: Tensor, batch: Batch) -> Tensor:
    return torch.where(batch.mask, output - batch.hr, 0.0)


def _count(mask: Tensor) -> Tensor:
    return mask.sum().clamp(min=1)


def _on_hr_pixels(images: Tensor, output: Tensor) -> Tensor:
    """(B,1,c,c) -> (B,1,H,W): each LR pixel's value on its HR pixels."""
    return functional.interpolate(images, size=output.shape[-2:], mode="nearest")


class Loss:
    """The weighted terms of a training."""

    def __init__(self, terms: Mapping[str, tuple[float, LossTerm]]) -> None:
        self.terms = terms

    def __call__(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Each term times its weight; their sum is what is minimised."""
        return {name: weight * term(output, batch) for name, (weight, term) in self.terms.items()}


def build_loss(weights: Mapping[LossName, float], context: LossContext = NO_CONTEXT) -> Loss:
    """The loss of a training. Raises `InputError` if a term needs what `context` does not have."""
    return Loss({name: (weight, _term(name, context)) for name, weight in weights.items()})


def _term(name: LossName, context: LossContext) -> LossTerm:
    if name in _TERMS:
        return _TERMS[name]
    key, what, make = _TERMS_WITH_CONTEXT[name]
    if (known := getattr(context, key)) is None:
        raise InputError(f"loss {name}: needs {what}, and this training has none; leave this term out")
    return make(known)


_TERMS: dict[str, LossTerm] = {
    "l1": pixel_loss("l1"),
    "mse": pixel_loss("mse"),
    "charbonnier": pixel_loss("charbonnier"),
    "fourier": fourier_loss,
    "chi2": chi_squared_loss,
    "flux": flux_loss,
}
_TERMS_WITH_CONTEXT: dict[str, tuple[str, str, Callable[[Any], LossTerm]]] = {
    "ssim": ("data_range", "the data range of the training set", ssim_loss),
    "data_consistency": ("operator", "the point spread functions of both instruments", data_consistency_loss),
    "content": ("content", "a trained content encoder", content_loss),
}
"""The field of `LossContext` that a term needs, what that is, and the term of it."""
