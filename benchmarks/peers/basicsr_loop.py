"""The plain way to train a super-resolution network in PyTorch, as BasicSR (Wang et al. 2022) and its kin do it.

Not BasicSR's code but the same structure, written anew: a `Dataset` of one image pair at a time, read, cropped, flipped
and made a tensor by worker processes on the host; a `DataLoader` with pinned memory; float32; Adam as it comes; the
moving average of weights in a loop over parameters; the loss read from the device at every step for the log.

It is given every advantage that does not change this structure: images that are already normalised and lie uncompressed
in a memory-mapped file (no PNG to decode), persistent workers, cuDNN's benchmark mode, and the same recipe as ours
(schedule, clipping, decay of the average), so that a step of it learns what a step of ours does.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info


class PairedImages(Dataset[dict[str, Tensor]]):
    """Random crops of image pairs in FOLDER/lr.npy (N,1,h,w) and FOLDER/hr.npy (N,1,scale*h,scale*w), float32."""

    def __init__(self, folder: Path, crop_size: int, seed: int) -> None:
        self.folder, self.crop_size, self.seed = folder, crop_size, seed
        self.count = len(np.load(folder / "lr.npy", mmap_mode="r"))
        self.images: tuple[np.ndarray, np.ndarray] | None = None  # opened by the process that reads them
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """A crop of pair `row` under a random symmetry: {"lq": (1,c,c), "gt": (1,scale*c,scale*c)}."""
        if self.images is None:
            worker = get_worker_info()
            self.generator = np.random.default_rng([self.seed, worker.id if worker else 0])
            lr, hr = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("lr", "hr"))
            self.images = lr, hr
        lr, hr = (images[row].transpose(1, 2, 0) for images in self.images)
        scale, crop = hr.shape[0] // lr.shape[0], self.crop_size
        top, left = (int(self.generator.integers(size - crop + 1)) for size in lr.shape[:2])
        pair = [
            lr[top : top + crop, left : left + crop],
            hr[scale * top : scale * (top + crop), scale * left : scale * (left + crop)],
        ]
        across, down, turned = self.generator.random(3) < 0.5
        if across:
            pair = [image[:, ::-1] for image in pair]
        if down:
            pair = [image[::-1] for image in pair]
        if turned:
            pair = [image.transpose(1, 0, 2) for image in pair]
        lq, gt = (torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")) for image in pair)
        return {"lq": lq, "gt": gt}


@dataclass(frozen=True)
class Recipe:
    """What is learnt, as opposed to how fast."""

    steps: int
    batch_size: int
    crop_size: int
    learning_rate: Callable[[int], float]
    """Of a step, 1 ... steps."""
    average_decay: Callable[[int], float]
    gradient_clip: float


class PlainLoop:
    """Trains `network` with the L1 loss on the images in `folder`, on `device`."""

    def __init__(
        self, network: nn.Module, folder: Path, recipe: Recipe, device: torch.device, workers: int, seed: int
    ) -> None:
        torch.backends.cudnn.benchmark = True
        self.network = network.to(device).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.recipe, self.device = recipe, device
        self.optimiser = torch.optim.Adam(self.network.parameters(), betas=(0.9, 0.999))
        dataset = PairedImages(folder, recipe.crop_size, seed)
        order = torch.Generator().manual_seed(seed)
        draws = recipe.steps * recipe.batch_size
        self.loader = DataLoader(
            dataset,
            recipe.batch_size,
            sampler=RandomSampler(dataset, replacement=True, num_samples=draws, generator=order),
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # torch's way on Linux, wherever this process is from
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        self.losses: list[float] = []

    def run(
        self, advance: Callable[..., None], validate: Callable[[nn.Module], dict[str, float]], validation_interval: int
    ) -> None:
        """Train to the last step; `advance(1)` after each, `validate(average)` after each interval."""
        advance(0)
        for step, batch in enumerate(self.loader, start=1):
            self._step(step, batch)
            advance(1)
            if step % validation_interval == 0:
                for averaged, followed in zip(self.average.buffers(), self.network.buffers(), strict=True):
                    averaged.copy_(followed)
                validate(self.average)

    def _step(self, step: int, batch: dict[str, Tensor]) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(step)
        lq, gt = (batch[name].to(self.device, non_blocking=True) for name in ("lq", "gt"))
        self.optimiser.zero_grad()
        loss = nn.functional.l1_loss(self.network(lq), gt)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.optimiser.step()
        self.losses.append(loss.item())
        decay = self.recipe.average_decay(step)
        averages = dict(self.average.named_parameters())
        for name, parameter in self.network.named_parameters():
            averages[name].mul_(decay).add_(parameter.data, alpha=1 - decay)
