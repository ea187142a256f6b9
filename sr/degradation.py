"""How LR images came about, as networks that know the degradation are told it.

Such a network has the class attribute `knows_degradation = True` and is called network(lr, degradation).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from simulate.shards import Band, Pairs

from .models.d4 import act
from .operators import ForwardOperator, matching_kernels
from .samples import Batch, transform


@dataclass(frozen=True)
class Degradation:
    """LR = A(HR) + noise, of a batch of B images in the network's domain, surface brightness."""

    noise: Tensor
    """(B,1,h,w) 1-sigma noise of the LR images."""
    operator: ForwardOperator
    """Its kernels are those of the B images in their order, or one for all."""

    def forward(self, hr: Tensor) -> Tensor:
        """A: (B,C,scale*h,scale*w) -> (B,C,h,w), a mean of HR pixels. Light from outside the frame does not come in."""
        return self.operator(hr) / self.operator.scale**2

    def adjoint(self, lr: Tensor) -> Tensor:
        """The transpose of `forward`: (B,C,h,w) -> (B,C,scale*h,scale*w)."""
        return self.operator.adjoint(lr) / self.operator.scale**2

    def turned(self, element: int) -> "Degradation":
        """That of the images after `sr.models.d4.act(element, ...)`."""
        kernels = act(element, self.operator.kernels)
        operator = ForwardOperator(kernels, self.operator.scale, self.operator.margin)
        return Degradation(act(element, self.noise), operator)


def knows_degradation(network: nn.Module) -> bool:
    """Whether `network` is called with a `Degradation`."""
    return getattr(network, "knows_degradation", False)


def served_scales(network: nn.Module, scale: int) -> tuple[int, ...]:
    """The scales that `network`, made for `scale`, serves: it is told one of them with the `Degradation`."""
    return getattr(network, "scales", (scale,))


def degradation_of_batch(batch: Batch, operator: ForwardOperator) -> Degradation:
    """That of crops under symmetries; `operator` is the samples', its kernels in their order. Waits for no device."""
    kernels = transform(operator.select(batch.rows).kernels, batch.symmetry)
    return Degradation(batch.noise, ForwardOperator(kernels, operator.scale, operator.margin))


@dataclass(frozen=True, eq=False)
class UsualKernel:
    """What a network that knows the degradation takes for images that come without a kernel."""

    kernel: np.ndarray
    """(k,k): the mean matching kernel of its training data."""
    hr_band: Band | None
    """The HR instrument with its mean PSF (k,k), of which kernels for other PSFs are made; None if it is not known."""
    others: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Such kernels for the other scales that the network serves."""

    def at_scale(self, scale: int, pixel_scale_arcsec: float) -> "UsualKernel":
        """That for one of the other scales, with HR pixels of `pixel_scale_arcsec`."""
        band = None if self.hr_band is None else replace(self.hr_band, pixel_scale_arcsec=pixel_scale_arcsec)
        return UsualKernel(self.others[scale], band)


def usual_kernel(network: nn.Module, pairs: Pairs) -> UsualKernel | None:
    """That of `pairs`, which `network` is trained on; None if it needs none."""
    if not knows_degradation(network):
        return None
    psf = pairs.hr_band.psf
    hr_band = replace(pairs.hr_band, psf=psf.mean(0) if psf.ndim == 3 else psf)
    kernels = {
        scale: matching_kernels(pairs.hr_band_at(scale), pairs.lr_band).mean(0)
        for scale in served_scales(network, pairs.scale)
        if pairs.scale % scale == 0
    }
    return UsualKernel(kernels.pop(pairs.scale), hr_band, kernels)
