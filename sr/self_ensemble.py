"""The x8 self-ensemble: the mean answer over the symmetries of the square (Timofte et al. 2015, arXiv:1511.02228)."""

import torch
from torch import Tensor, nn

from .degradation import Degradation
from .models.d4 import ORDER, act, inverse


def mean_over_symmetries(network: nn.Module, lr: Tensor, degradation: Degradation | None = None) -> Tensor:
    """(B,C,h,w) -> (B,C,scale*h,scale*w): equivariant whatever the network, at eight times its cost.

    The sum is taken in float64, so that its order, which the symmetries change, does not show in the float32 result.
    """

    def answer(one: int) -> Tensor:
        told = (degradation.turned(one),) if degradation else ()
        return act(inverse(one), network(act(one, lr).contiguous(), *told).double())

    answers = (answer(one) for one in range(ORDER))
    first = next(answers)
    return (sum(answers, start=first) / ORDER).to(torch.float32)
