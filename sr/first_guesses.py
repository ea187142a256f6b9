"""What a network makes of whole images before it learns from crops of them: made once, and kept if that is stopped."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from .checkpoint import load_checkpoint, save_checkpoint
from .degradation import Degradation
from .operators import ForwardOperator
from .samples import Samples

FIRST_GUESSES_NAME = "first_guesses.safetensors"
AT_ONCE = 16
"""Images."""


def with_first_guesses(
    samples: Samples,
    network: nn.Module,
    operator: ForwardOperator,
    tell: Callable[[str], None],
    folder: Path | None = None,
    identity: str = "",
    deadline: float = math.inf,
) -> tuple[Samples, bool]:
    """`samples` with what `network.guess` makes of them, and whether all are there at `deadline`.

    With a `folder`, they are kept in a file there, and made of those that are missing only; `identity` says of which
    training they are. `tell` shows how far it is.
    """
    guesses, done = torch.empty_like(samples.hr), 0
    path = folder / FIRST_GUESSES_NAME if folder else None
    if path and path.is_file():
        tensors, numbers = load_checkpoint(path)
        if numbers["identity"] == identity:
            done = len(tensors["guesses"]["made"])
            guesses[:done] = tensors["guesses"]["made"].to(guesses.device)
    before = done
    while done < len(samples) and time.monotonic() <= deadline:
        tell(f"first guesses, {done} of {len(samples)}")
        rows = slice(done, done + AT_ONCE)
        degradation = Degradation(samples.noise[rows], operator.select(rows))
        guesses[rows] = network.guess(samples.lr[rows], degradation)  # type: ignore[operator]
        done = min(done + AT_ONCE, len(samples))
    if path and done > before:
        save_checkpoint(path, {"guesses": {"made": guesses[:done]}}, {"identity": identity})
    return replace(samples, first_guess=guesses), done == len(samples)
