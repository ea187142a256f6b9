"""Agreement and speed of one simulator on one case: a worker process a core with one thread each, all timed together.

Every worker makes its simulator, warms it up (compilation is timed apart), finds how many lenses it renders in the
time that is asked for, draws them, and waits for the others; lenses and seconds are counted from the first start to
the last end. With no workers everything happens in this process.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from tempfile import TemporaryDirectory
from threading import BrokenBarrierError
from time import monotonic, process_time
from typing import Any
from unittest.mock import patch

import numpy as np

from simulate.scene import Scene
from simulate.workers import WORKER_ENVIRONMENT

from . import make_system
from .base import System, Task, draw_lens

ENVIRONMENT = {**WORKER_ENVIRONMENT, "JAX_PLATFORMS": "cpu"}
WARM_UP_FIRST = 10**6
"""Index of the first lens of the warm-up; the lenses that are timed begin at 0."""


@dataclass(frozen=True)
class Reference:
    """What a simulator must reproduce, from lenstronomy: noiseless HR (n,H,W) and LR, noise and deflection."""

    hr: np.ndarray
    lr: np.ndarray
    hr_sigma: np.ndarray
    lr_sigma: np.ndarray
    deflection: np.ndarray  # (n,2,rays,rays)


@dataclass(frozen=True)
class Agreement:
    """The worst over the lenses of a reference."""

    image_l2: float
    """|HR - reference| / |reference|, noiseless."""
    image_max: float
    """Largest difference of an HR pixel in units of the brightest."""
    deflection_max_arcsec: float
    noise_map_max: float
    """Largest relative difference of the LR noise map, which shows the LR image before noise."""
    hr_chi2: float
    """Mean of (noisy - noiseless reference)^2 / sigma^2: 1 within a few times `chi2_error`."""
    lr_chi2: float
    chi2_error: float
    """Standard error of `lr_chi2` for Gaussian noise; that of `hr_chi2` is smaller."""

    def complaint(self, limit: float) -> str:
        """What is wrong with the pair; empty if images and noise map are within `limit` and the noise is as it says."""
        if not self.image_l2 < limit:
            return f"its images differ by {self.image_l2:.1e} (limit {limit:g})"
        if not self.noise_map_max < limit:
            return f"its LR noise map differs by {self.noise_map_max:.1e} (limit {limit:g})"
        for side, chi2 in (("HR", self.hr_chi2), ("LR", self.lr_chi2)):
            if not abs(chi2 - 1) < 5 * self.chi2_error:
                return (
                    f"its {side} noise has a chi^2 of {chi2:.3f} a pixel, expected 1 within {5 * self.chi2_error:.3f}"
                )
        return ""


@dataclass(frozen=True)
class Speed:
    """Lenses and seconds of all workers together."""

    lenses: int
    seconds: float
    compile_seconds: float
    """First call, in the slowest worker: imports are not in it."""
    busy: float
    """CPU seconds of a worker in a second. 1 for one thread; less, and something else was running on the machine."""

    @property
    def lenses_per_second(self) -> float:
        """Of the machine."""
        return self.lenses / self.seconds


@dataclass(frozen=True)
class Request:
    """One simulator, one case, and how to time it."""

    system: str
    task: Task
    seed: int
    seconds: float
    most_lenses: int
    """For all workers together."""
    options: dict[str, Any] = field(default_factory=dict)


def make_reference(task: Task, seed: int, count: int) -> Reference:
    """lenstronomy's `ImageModel` of the first lenses of a case."""
    from .lenstronomy import ImageModelTwice

    model = ImageModelTwice(task, seed)
    scenes = [draw_lens(task, seed, index) for index in range(count)]
    hr, lr = (np.stack(images) for images in zip(*map(model.noiseless, scenes), strict=True))
    return Reference(hr, lr, *model.optics.sigma(hr, lr), np.stack([model.deflection(scene) for scene in scenes]))


def compare(system: System, task: Task, seed: int, reference: Reference) -> Agreement:
    """How well `system` reproduces the first lenses of a case."""
    count, size = len(reference.hr), system.batch
    starts = range(0, count, size)
    scenes = [draw_lens(task, seed, index) for index in range(len(starts) * size)]
    parts = [system.render(system.prepare(scenes[start : start + size])) for start in starts]
    hr, hr_noisy, lr, lr_noise = (
        np.concatenate([_numpy(getattr(part, name)) for part in parts])[:count].astype(float)
        for name in ("hr", "hr_noisy", "lr", "lr_noise")
    )
    difference = np.abs(hr - reference.hr)
    norm = np.linalg.norm(difference, axis=(1, 2)) / np.linalg.norm(reference.hr, axis=(1, 2))
    alpha = np.stack([system.deflection(scene) for scene in scenes[:count]])
    return Agreement(
        image_l2=float(norm.max()),
        image_max=float((difference.max((1, 2)) / reference.hr.max((1, 2))).max()),
        deflection_max_arcsec=float(np.abs(alpha - reference.deflection).max()),
        noise_map_max=float(np.abs(lr_noise / reference.lr_sigma - 1).max()),
        hr_chi2=float((((hr_noisy - reference.hr) / reference.hr_sigma) ** 2).mean()),
        lr_chi2=float((((lr - reference.lr) / reference.lr_sigma) ** 2).mean()),
        chi2_error=float(np.sqrt(2 / reference.lr.size)),
    )


def _numpy(image: Any) -> np.ndarray:
    return np.asarray(image.cpu() if hasattr(image, "cpu") else image)


class _Worker:
    """One process: its number among `workers`, and the barrier at which they meet."""

    def __init__(self, request: Request, number: int = 0, workers: int = 1, barrier: Barrier | None = None) -> None:
        self.request, self.number, self.workers, self.barrier = request, number, workers, barrier
        self.first_seconds = 0.0
        """Of the first call of `render`, which compiles."""

    @cached_property
    def system(self) -> System:
        """Made and called once when it is first needed, so that its errors reach whoever asked."""
        request = self.request
        made = make_system(request.system, request.task, request.seed + self.number, **request.options)
        prepared = made.prepare([self._draw(WARM_UP_FIRST + one) for one in range(made.batch)])
        began = monotonic()
        made.render(prepared)
        self.first_seconds = monotonic() - began
        return made

    def compare(self, reference: Reference) -> Agreement:
        return compare(self.system, self.request.task, self.request.seed, reference)

    def warm_up(self) -> tuple[float, float, int]:
        """Compile seconds, lenses a second of this worker, and lenses in a batch."""
        size, batches, seconds = self.system.batch, 1, 0.0
        self.meet()
        while seconds < min(0.5, self.request.seconds / 4):
            batches *= 3
            seconds = self._render([self._prepare(WARM_UP_FIRST * (1 + self.number) + one) for one in range(batches)])
        return max(0.0, self.first_seconds - seconds / batches), batches * size / seconds, size

    def measure(self, batches: int) -> tuple[float, float, float]:
        """When this worker began and ended its lenses (batches `number`, `number + workers`, ...), and CPU seconds."""
        prepared = [self._prepare(self.number + turn * self.workers) for turn in range(batches)]
        self.meet()
        began, busy = monotonic(), process_time()
        self._render(prepared)
        return began, monotonic(), process_time() - busy

    def meet(self) -> None:
        """Wait until every process is here; so each of them gets one call."""
        if self.barrier:
            self.barrier.wait()

    def _prepare(self, batch: int) -> Any:
        """Batch number `batch` of the case's lenses."""
        size = self.system.batch
        return self.system.prepare([self._draw(index) for index in range(batch * size, (batch + 1) * size)])

    def _draw(self, index: int) -> Scene:
        return draw_lens(self.request.task, self.request.seed, index)

    def _render(self, prepared: list[Any]) -> float:
        """Seconds."""
        began = monotonic()
        for one in prepared:
            self.system.render(one)
        return monotonic() - began


_worker: _Worker
"""Of this process, if it is a worker."""


def _start(request: Request, workers: int, cores: list[int], counter: Any, barrier: Barrier) -> None:
    global _worker
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    if cores:
        os.sched_setaffinity(0, {cores[number % len(cores)]})  # JAX has no other way to be told to use one thread
    _worker = _Worker(request, number, workers, barrier)


def _call(name: str, *arguments: Any) -> Any:
    try:
        return getattr(_worker, name)(*arguments)
    except BaseException:
        assert _worker.barrier is not None
        _worker.barrier.abort()  # the others would wait for ever
        raise


def available_cores() -> list[int]:
    """Numbers of the cores that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def _crew(request: Request, workers: int) -> Iterator[Callable[..., list[Any]]]:
    """A function that calls a method of `_Worker` in every process (or the first `among`) and returns the results."""
    if workers == 0:
        alone = _Worker(request)
        yield lambda name, *arguments, among=1: [getattr(alone, name)(*arguments)]  # noqa: ARG005
        return
    context = get_context("spawn")
    barrier, counter = context.Barrier(workers), context.Value("i", 0)
    with (
        TemporaryDirectory() as cache,  # nothing compiled by an earlier run
        patch.dict(os.environ, {**ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": cache}),
        ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=(request, workers, available_cores(), counter, barrier)
        ) as pool,
    ):

        def call(name: str, *arguments: Any, among: int = workers) -> list[Any]:
            futures = [pool.submit(_call, name, *arguments) for _ in range(among)]
            errors = [error for one in futures if (error := one.exception()) is not None]
            for error in sorted(errors, key=lambda one: isinstance(one, BrokenBarrierError)):
                raise error  # the cause, not those that no longer wait
            return [one.result() for one in futures]

        call("meet")  # all processes are there from now on, and known to the pool: if one dies, the others are stopped
        yield call


def measure(request: Request, workers: int, reference: Reference, limit: float) -> tuple[Agreement, Speed | None]:
    """Agreement and, unless that has a `complaint`, speed."""
    with _crew(request, workers) as call:
        (agreement,) = call("compare", reference, among=1)
        if agreement.complaint(limit):
            return agreement, None
        warm = call("warm_up")
        rate = sum(one for _, one, _ in warm) / len(warm)
        size = warm[0][2]
        most = max(1, request.most_lenses // (len(warm) * size))
        batches = min(most, math.ceil(rate * request.seconds / size))
        times = call("measure", batches)
    seconds = max(end for _, end, _ in times) - min(began for began, _, _ in times)
    busy = sum(one for _, _, one in times) / sum(end - began for began, end, _ in times)
    return agreement, Speed(batches * size * len(times), seconds, max(compiled for compiled, _, _ in warm), busy)
