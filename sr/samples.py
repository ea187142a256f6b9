"""The training set as tensors that stay on the device, and random augmented crops of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from simulate.shards import Pairs

from .normalisation import Normalisation, as_tensor


class SampleSource(Protocol):
    """Where the training loop takes its samples from."""

    @property
    def device(self) -> torch.device: ...

    def start(self, step: int, tell: Callable[[str], None]) -> None:
        """Make the samples of `step` (1 ...) ready, the first that will be asked for; `tell` shows how far it is."""

    def at(self, step: int) -> "Samples":
        """The samples that `step` draws from; steps are asked for in order. Does not wait for the device."""


@dataclass(frozen=True)
class Samples:
    """Image pairs in the network's domain, resident on one device. As a `SampleSource`: the same at every step."""

    lr: Tensor  # (N,1,h,w)
    hr: Tensor  # (N,1,H,W) what the network is trained towards
    mask: Tensor  # (N,1,H,W) bool, True where the HR pixel is real
    index: Tensor  # (N,) the samples' index in the data set, on the CPU

    def __len__(self) -> int:
        return len(self.lr)

    @property
    def device(self) -> torch.device:
        return self.lr.device

    def start(self, step: int, tell: Callable[[str], None]) -> None:
        """There is nothing to make ready."""

    def at(self, step: int) -> "Samples":  # noqa: ARG002 - the same at every step
        """These."""
        return self

    @property
    def scale(self) -> int:
        return self.hr.shape[-1] // self.lr.shape[-1]


def load_samples(
    pairs: Pairs, normalisation: Normalisation, target: Literal["hr", "hr_noisy"], device: torch.device
) -> Samples:
    """Normalise all of `pairs` and put them on `device`; `target` names the HR images to train towards."""
    amplitude = normalisation.amplitude(as_tensor(pairs.lr_noise, device))
    return Samples(
        lr=normalisation.to_network_lr(as_tensor(pairs.lr, device), amplitude),
        hr=normalisation.to_network_hr(as_tensor(getattr(pairs, target), device), amplitude),
        mask=torch.tensor(pairs.hr_mask, device=device),
        index=torch.tensor(pairs.index),
    )


def draw_batch(
    samples: Samples, batch_size: int, crop_size: int | None, augment: bool, generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random crops of random samples (with replacement), each under a random symmetry of the square.

    `crop_size` is in LR pixels; None takes the largest square. Returns lr (B,1,c,c), hr and mask
    (B,1,scale*c,scale*c) and rows (B,), all on the device; nothing waits for the device.
    """
    height, width = samples.lr.shape[-2:]
    crop = crop_size or min(height, width)

    def random(bound: int) -> Tensor:
        return torch.randint(bound, (batch_size,), generator=generator, device=generator.device)

    rows, top, left, symmetry = random(len(samples)), random(height - crop + 1), random(width - crop + 1), random(8)
    crops = []
    for images, scale in ((samples.lr, 1), (samples.hr, samples.scale), (samples.mask, samples.scale)):
        span = torch.arange(scale * crop, device=images.device)
        y = (scale * top)[:, None, None] + span[:, None]  # (B,c,1)
        x = (scale * left)[:, None, None] + span  # (B,1,c)
        cut = images[rows[:, None, None], :, y, x].permute(0, 3, 1, 2)
        crops.append(transform(cut, symmetry) if augment else cut)
    return crops[0], crops[1], crops[2], rows


def transform(images: Tensor, symmetry: Tensor) -> Tensor:
    """Apply to each of (B,1,s,s) images one of the 8 symmetries of the square (the group D4), 0 being the identity."""
    bit = symmetry[:, None, None, None]
    images = torch.where((bit & 1).bool(), images.flip(-1), images)
    images = torch.where((bit & 2).bool(), images.flip(-2), images)
    return torch.where((bit & 4).bool(), images.transpose(-1, -2), images)
