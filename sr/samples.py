"""The training set as tensors that stay on the device, and random augmented crops of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional

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
    noise: Tensor  # (N,1,h,w) 1-sigma noise of lr
    index: Tensor  # (N,) the samples' index in the data set, on the CPU
    first_guess: Tensor | None = None  # (N,1,H,W) where a network starts from what it makes of whole images

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


@dataclass(frozen=True)
class Batch:
    """Crops of samples, each under a symmetry of the square: `Samples` row by row, and where they come from."""

    lr: Tensor  # (B,1,c,c)
    hr: Tensor  # (B,1,scale*c,scale*c)
    mask: Tensor  # (B,1,scale*c,scale*c) bool
    noise: Tensor  # (B,1,c,c)
    rows: Tensor  # (B,) of the samples
    symmetry: Tensor  # (B,) 0 ... 7, as `transform` takes it
    first_guess: Tensor | None = None  # (B,1,scale*c,scale*c)

    def at_scale(self, scale: int) -> "Batch":
        """With HR pixels so many times smaller than the LR pixels: means of those that there are, real if all are."""
        many = self.hr.shape[-1] // (scale * self.lr.shape[-1])
        if many == 1:
            return self
        hr = functional.avg_pool2d(torch.where(self.mask, self.hr, 0.0), many)
        return replace(self, hr=hr, mask=functional.avg_pool2d(self.mask.to(hr.dtype), many) == 1)


def load_samples(
    pairs: Pairs, normalisation: Normalisation, target: Literal["hr", "hr_noisy"], device: torch.device
) -> Samples:
    """Normalise all of `pairs` and put them on `device`; `target` names the HR images to train towards."""
    noise = as_tensor(pairs.lr_noise, device)
    amplitude = normalisation.amplitude(noise)
    return Samples(
        lr=normalisation.to_network_lr(as_tensor(pairs.lr, device), amplitude),
        hr=normalisation.to_network_hr(as_tensor(getattr(pairs, target), device), amplitude),
        mask=torch.tensor(pairs.hr_mask, device=device),
        noise=normalisation.to_network_lr(noise, amplitude),
        index=torch.tensor(pairs.index),
    )


def draw_batch(
    samples: Samples,
    batch_size: int,
    crop_size: int | None,
    augment: bool,
    generator: Generator,
    part: slice = slice(None),
) -> Batch:
    """Random crops of random samples (with replacement), each under a random symmetry of the square.

    `crop_size` is in LR pixels; None takes the largest square. Of the `batch_size` crops only those of `part` are cut
    out, which leaves the generator where all of them would. Nothing waits for the device.
    """
    height, width = samples.lr.shape[-2:]
    crop = crop_size or min(height, width)

    def random(bound: int) -> Tensor:
        return torch.randint(bound, (batch_size,), generator=generator, device=generator.device)[part]

    rows, top, left, symmetry = random(len(samples)), random(height - crop + 1), random(width - crop + 1), random(8)
    if not augment:
        symmetry = torch.zeros_like(symmetry)

    def places(scale: int) -> Tensor:
        """(B,1,s,s) positions in the flattened images: all crops and symmetries in one look-up."""
        size = scale * crop
        span = torch.arange(size, device=rows.device)
        across, down, turned = ((symmetry[:, None] & bit).bool() for bit in (1, 2, 4))
        x, y = torch.where(across, size - 1 - span, span), torch.where(down, size - 1 - span, span)  # (B,s)
        y = y * (scale * width)
        along_rows, along_columns = torch.where(turned, x, y), torch.where(turned, y, x)
        corner = (rows * height * scale + top * scale) * (width * scale) + left * scale
        return (corner[:, None, None] + along_rows[:, :, None] + along_columns[:, None, :])[:, None]

    lr_places, hr_places = places(1), places(samples.scale)
    return Batch(
        lr=torch.take(samples.lr, lr_places),
        hr=torch.take(samples.hr, hr_places),
        mask=torch.take(samples.mask, hr_places),
        noise=torch.take(samples.noise, lr_places),
        rows=rows,
        symmetry=symmetry,
        first_guess=None if samples.first_guess is None else torch.take(samples.first_guess, hr_places),
    )


def transform(images: Tensor, symmetry: Tensor) -> Tensor:
    """Apply to each of (B,1,s,s) images one of the 8 symmetries of the square (the group D4), 0 being the identity."""
    bit = symmetry[:, None, None, None]
    images = torch.where((bit & 1).bool(), images.flip(-1), images)
    images = torch.where((bit & 2).bool(), images.flip(-2), images)
    return torch.where((bit & 4).bool(), images.transpose(-1, -2), images)


def undo_transform(images: Tensor, symmetry: Tensor) -> Tensor:
    """The inverse of `transform`."""
    bit = symmetry[:, None, None, None]
    images = torch.where((bit & 4).bool(), images.transpose(-1, -2), images)
    images = torch.where((bit & 2).bool(), images.flip(-2), images)
    return torch.where((bit & 1).bool(), images.flip(-1), images)
