"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): fine-tuning that can change each layer only a little.

A layer's weight W is frozen and W + B A takes its place (equation 3), B and A having `rank` columns and rows. A kernel
is taken as the matrix (first axis, all other axes). The paper's factor alpha / rank is 1 here: with Adam it only scales
the learning rate (section 4.1). Biases, slopes and batch normalisation stay as they are, running statistics too.
"""

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from simulate.errors import InputError


class LowRankUpdate(nn.Module):
    """The parametrisation W -> W + B A. B starts at zero, so the network is unchanged at first."""

    def __init__(self, weight: Tensor, rank: int, generator: Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)  # more could not say more
        draws = torch.randn(rank, columns, generator=generator, device=generator.device)
        self.down = nn.Parameter((draws / columns**0.5).to(weight))  # A
        self.up = nn.Parameter(weight.new_zeros(rows, rank))  # B

    def forward(self, weight: Tensor) -> Tensor:
        """(rows, ...) -> (rows, ...)."""
        return weight + (self.up @ self.down).view(weight.shape)


def add_adapters(network: nn.Module, rank: int, generator: Generator) -> None:
    """Freeze `network` and give each layer whose weight has two axes or more (convolutions, linear) an adapter.

    The adapters alone learn from then on. `generator` draws their A. Raises `InputError` if there is no such layer.
    """
    network.requires_grad_(False)
    weights = [(module, getattr(module, "weight", None)) for module in network.modules()]
    matrices = [(layer, weight) for layer, weight in weights if isinstance(weight, nn.Parameter) and weight.ndim > 1]
    if not matrices:
        raise InputError(f"{type(network).__name__}: no layer has a weight matrix that an adapter could change")
    for layer, weight in matrices:
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(weight, rank, generator))
    network.train(network.training)  # batch statistics are frozen with their weights


def merge_adapters(network: nn.Module) -> None:
    """Write W + B A into plain weights: the same output, and the state dict has its old keys. All stays frozen."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
