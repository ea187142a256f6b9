"""An unfinished training on disk: one safetensors file that holds all tensors and, in its header, the numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from simulate.errors import InputError
from simulate.shards import write_atomically

CHECKPOINT_NAME = "checkpoint.safetensors"


def save_checkpoint(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> None:
    """Write groups of tensors and `numbers` (JSON) as one file, atomically: they can never disagree."""
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, members in tensors.items()
        for name, tensor in members.items()
    }
    metadata = {"numbers": json.dumps(numbers)}
    write_atomically(path, lambda temporary: save_file(flat, temporary, metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The groups of tensors (on the CPU) and the numbers of `save_checkpoint`. Raises `InputError` if damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["numbers"])
            groups: dict[str, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged checkpoint ({error}); delete it, or train again with --fresh") from None
    return groups, numbers


def optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    """The moments and step counts of Adam, by parameter."""
    state = optimiser.state_dict()["state"]
    return {f"{parameter}/{name}": tensor for parameter, values in state.items() for name, tensor in values.items()}


def restore_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        position, _, name = key.partition("/")
        parameter = parameters[int(position)]
        if tensor.shape == parameter.shape:  # a moment; in memory as its parameter is, which fused Adam insists on
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        state.setdefault(int(position), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
