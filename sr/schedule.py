"""How one network is trained: steps, batches, learning rates, losses; and how fast the device may do it."""

import math
from typing import Literal

import torch
from pydantic import Field

from simulate.settings import Settings

from .losses import LossWeights


class LargePatchSettings(Settings):
    """A last stage on larger crops, from where the learning rate falls anew (Lin et al. 2022, arXiv:2201.11279)."""

    steps: int = Field(ge=1)
    crop_size: int | None = Field(ge=8)  # LR pixels; None trains on whole images
    learning_rate: float = Field(gt=0)
    batch_size: int | None = Field(None, ge=1)  # None: as before


class LoopSettings(Settings):
    """How one network is trained."""

    steps: int = Field(400, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    """Parts that a batch is worked through in, one after the other, where memory does not hold it at once."""
    crop_size: int | None = Field(24, ge=8)  # LR pixels; None trains on whole images (their largest square)
    augment: bool = True  # random flips and quarter turns
    loss: LossWeights = Field({"l1": 1.0})
    learning_rate: float = Field(2e-3, gt=0)  # reached after the warm-up, from where it falls as a cosine
    final_learning_rate_fraction: float = Field(0.01, ge=0, le=1)
    warm_up_fraction: float = Field(0.05, ge=0, lt=1)  # of the steps
    large_patch: LargePatchSettings | None = None
    ema_decay: float = Field(0.999, ge=0, lt=1)
    gradient_clip: float | None = Field(1.0, gt=0)  # largest norm of a step's gradient
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions and matrix products; outputs, losses and weights are float32. auto: bfloat16 on a GPU that has
    it, float32 on CPUs."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the network. auto: on a GPU; on a CPU it takes some thousand steps to pay."""
    log_interval: int = Field(10, ge=1)  # steps
    validation_interval: int = Field(50, ge=1)
    checkpoint_interval: int = Field(100, ge=1)

    @property
    def total_steps(self) -> int:
        """Of both stages."""
        return self.steps + (self.large_patch.steps if self.large_patch else 0)

    def batch_at(self, step: int) -> tuple[int, int | None]:
        """Crops in the batch of `step` (1 ... total_steps), and their size in LR pixels."""
        if self.large_patch is None or step <= self.steps:
            return self.batch_size, self.crop_size
        return self.large_patch.batch_size or self.batch_size, self.large_patch.crop_size

    def uses_bfloat16(self, device: torch.device) -> bool:
        """Whether networks compute in bfloat16 on `device`."""
        if self.precision == "auto":
            return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return self.precision == "bfloat16"

    def compiles(self, device: torch.device) -> bool:
        """Whether networks are compiled on `device`."""
        return device.type == "cuda" if self.compile == "auto" else self.compile


def scheduled_learning_rate(step: int, settings: LoopSettings) -> float:
    """The learning rate at `step` (1 ... total_steps): linear warm-up, then a cosine down to the final fraction.

    A large-patch stage has no warm-up.
    """
    floor = settings.final_learning_rate_fraction
    if settings.large_patch and step > settings.steps:
        done = (step - settings.steps) / settings.large_patch.steps
        return settings.large_patch.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
    warm_up = round(settings.warm_up_fraction * settings.steps)
    if step <= warm_up:
        return settings.learning_rate * step / warm_up
    done = (step - warm_up) / (settings.steps - warm_up)
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def averaging_decay(step: int, ema_decay: float) -> float:
    """Decay of the moving average of weights at `step`: short at first, so that the start is soon forgotten."""
    return min(ema_decay, (1 + step) / (10 + step))
