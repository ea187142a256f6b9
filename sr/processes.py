"""Training in several processes at once, as `torchrun` starts them: each works on its part of every batch.

All processes draw the same random numbers, hold the same weights and take the same steps; what they share after each
backward pass are gradients. So a training is the one that a single process would do with the whole batch.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from simulate.errors import InputError


def launched_count() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_count() -> int:
    """Processes that train together; 1 outside `joined_processes`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is. Number 0 alone validates, reports and writes."""
    return distributed.get_rank() if process_count() > 1 else 0


@contextmanager
def joined_processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started; yields this process's device, a GPU of its own where `device` is one.

    Without `torchrun`, nothing happens. Raises `InputError` if there are more processes than GPUs.
    """
    if launched_count() == 1:
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise InputError(f"torchrun --nproc-per-node: expected at most one process a GPU, found {found} GPUs")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Return once all processes are here."""
    if process_count() > 1:
        distributed.barrier()


def agreed(value: bool, device: torch.device) -> bool:
    """What process 0 says. Waits for the device."""
    if process_count() == 1:
        return value
    answer = torch.tensor(float(value), device=device)
    distributed.broadcast(answer, 0)
    return bool(answer)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each parameter's gradient by its mean over all processes, in one message."""
    if process_count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = _averaged(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, mean in zip(gradients, together.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


class _ProcessMean(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return _averaged(value)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        # every process's loss depends on this process's value; their gradients will be averaged, not summed
        return _averaged(gradients[0])


@torch.compiler.disable
def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of `value` (any shape, the same in all processes); `value` itself where there is one process.

    Gradients flow through it. With parameter gradients averaged over processes, a loss that uses such means has the
    gradient that one process would find with all of the batch. All processes must call it, forwards and backwards, in
    the same order.
    """
    return _ProcessMean.apply(value) if process_count() > 1 else value


def _averaged(value: Tensor) -> Tensor:
    result = value.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(result)
    return result / process_count()
