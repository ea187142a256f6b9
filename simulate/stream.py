"""An endless stream of samples that never touches the disk: drawn and rendered ahead of need, block after block."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .generate import SAMPLES_PER_TASK, SimulateSettings
from .sample import GPU_MEMORY_BYTES, draw_sample, simulate_sample
from .scene import Scene
from .workers import in_order, worker_pool

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STREAM_IMAGES = ("hr", "hr_noisy", "lr", "lr_noise")
BLOCKS_AHEAD = 2
"""Blocks that workers are at, or have done, besides the one that is being put together; more for many workers."""


@dataclass(frozen=True)
class Block:
    """Samples `index` of a stream: hr, hr_noisy (B,1,H,W), lr, lr_noise (B,1,h,w), float32 in nJy per pixel."""

    number: int
    index: range
    images: dict[str, "Tensor"]


@dataclass(frozen=True)
class SampleStream:
    """Samples `first`, `first` + 1, ... of the training split in blocks of `size`, on `device`.

    On a CPU, sample i is the one that `pipeline simulate` would write as number i, bit for bit. A GPU renders whole
    blocks, and draws their noise from a generator seeded with (seed, number of the block): there, what is in a block
    depends on the settings, the seed, its number and `memory_bytes` alone.
    """

    settings: SimulateSettings
    seed: int
    first: int
    size: int
    device: "torch.device"
    memory_bytes: int
    tasks_ahead: int
    workers: ProcessPoolExecutor
    assembly: ThreadPoolExecutor
    """One thread, in which the next block is put together (and rendered by a GPU) while the last one is in use."""
    aside: "torch.cuda.Stream | None"
    """Where a GPU does so."""

    @property
    def renders_on_device(self) -> bool:
        """Whether workers only draw the scenes."""
        return self.device.type != "cpu" and self.settings.engine == "torch"

    def index(self, number: int) -> range:
        """The samples of a block."""
        start = self.first + number * self.size
        return range(start, start + self.size)

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Block `start` and all that follow, without end.

        One block is put together ahead of need, and at most `tasks_ahead` parts of further ones. Raises `InputError` if
        the settings turn out to be wrong, `RuntimeError` if a sample cannot be simulated or a worker is killed.
        """
        do: Callable[..., list[Any]] = _draw if self.renders_on_device else _simulate
        work = partial(do, self.settings, self.seed)
        tasks = (task for number in count(start) for task in self._tasks(number))
        parts = in_order(self.workers, work, tasks, self.tasks_ahead)
        making = self.assembly.submit(self._make, start, parts)
        for number in count(start):
            images = self._wait(making)
            making = self.assembly.submit(self._make, number + 1, parts)
            yield Block(number, self.index(number), images)

    def _tasks(self, number: int) -> list[range]:
        """What of a block one worker does at a time."""
        index = self.index(number)
        return [index[first : first + SAMPLES_PER_TASK] for first in range(0, self.size, SAMPLES_PER_TASK)]

    def _make(self, number: int, parts: Iterator[list[Any]]) -> tuple[dict[str, "Tensor"], "torch.cuda.Event | None"]:
        """Put block `number` together from the next of the workers' results; a GPU does so beside its other work."""
        import torch

        samples = list(chain.from_iterable(islice(parts, len(self._tasks(number)))))
        with torch.cuda.stream(self.aside):
            if self.renders_on_device:
                from .torch_engine.blocks import render_block

                generator = torch.Generator(self.device).manual_seed(_noise_seed(self.seed, number))
                images = render_block(self.settings, samples, generator, self.device, self.memory_bytes)
            else:
                stacked = {name: np.stack([one[name] for one in samples]) for name in STREAM_IMAGES}
                images = {name: torch.from_numpy(one).to(self.device) for name, one in stacked.items()}
            return images, self.aside.record_event() if self.aside else None

    def _wait(self, making: "Future[tuple[dict[str, Tensor], torch.cuda.Event | None]]") -> dict[str, "Tensor"]:
        """The images of a block, fit for use in the caller's own CUDA stream; waits for workers, never for the GPU."""
        import torch

        try:
            images, ready = making.result()
        except BrokenProcessPool:
            raise RuntimeError(
                "a simulation worker was killed (out of memory?); run again to go on from here"
            ) from None
        if ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for image in images.values():
                image.record_stream(current)  # or its memory would be given away as soon as the other stream is done
        return images


@contextmanager
def open_stream(
    settings: SimulateSettings,
    seed: int,
    first: int,
    size: int,
    device: "torch.device",
    workers: int,
    memory_bytes: int = GPU_MEMORY_BYTES,
) -> Iterator[SampleStream]:
    """A stream, and the processes behind it for as long as the block runs: `workers` of them, started when needed.

    Workers draw and render (CPU, or the lenstronomy engine); with a GPU they draw the scenes and it renders them, in
    at most `memory_bytes`. They end with the block, also if that ends by an exception. Raises `InputError` if the
    instruments do not fit.
    """
    import torch

    with (
        ThreadPoolExecutor(1, "assembly") as assembly,
        worker_pool(workers) as pool,
    ):
        plain = settings.resolve().model_copy(update={"truth_maps": False})
        tasks_ahead = max(BLOCKS_AHEAD * math.ceil(size / SAMPLES_PER_TASK), 2 * workers)
        aside = torch.cuda.Stream(device) if device.type == "cuda" else None
        yield SampleStream(plain, seed, first, size, device, memory_bytes, tasks_ahead, pool, assembly, aside)


def _draw(settings: SimulateSettings, seed: int, indices: range) -> list[Scene]:
    from .torch_engine.packing import compact

    with _naming(seed, indices):
        return [compact(draw_sample(settings, seed, index, "train")[0]) for index in indices]


def _simulate(settings: SimulateSettings, seed: int, indices: range) -> list[dict[str, np.ndarray]]:
    with _naming(seed, indices):
        samples = (simulate_sample(settings, seed, index, "train") for index in indices)
        return [{name: sample[name] for name in STREAM_IMAGES} for sample in samples]


@contextmanager
def _naming(seed: int, indices: range) -> Iterator[None]:
    """Wrong input passes; of any other failure, say where it happened."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        where = f"samples {indices[0]} to {indices[-1]} (seed {seed})"
        raise RuntimeError(f"{where} cannot be simulated: {type(error).__name__}: {error}") from error


def _noise_seed(seed: int, number: int) -> int:
    """A seed of its own for the noise of each block."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1, np.uint64)[0])
