"""The x8 self-ensemble: the mean answer over the symmetries of the square (Timofte et al. 2015, arXiv:1511.02228)."""

import torch
from torch import Tensor, nn

from .models.d4 import ORDER, act, inverse


def mean_over_symmetries(network: nn.Module, lr: Tensor) -> Tensor:
    """(B,C,h,w) -> (B,C,scale*h,scale*w): equivariant whatever the network, at eight times its cost.

    The sum is taken in float64, so that its order, which the symmetries change, does not show in the float32 result.
    """
    answers = (act(inverse(one), network(act(one, lr).contiguous()).double()) for one in range(ORDER))
    first = next(answers)
    return (sum(answers, start=first) / ORDER).to(torch.float32)
