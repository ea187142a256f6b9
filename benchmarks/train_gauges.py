"""What the training benchmark reads off a run: its clock, validation, memory, and the work that was done."""

import math
import os
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from simulate.shards import Pairs
from sr.metrics import data_range_of, psnr
from sr.normalisation import as_tensor, fit_normalisation

WARM_UP_STEPS = 5
LEAST_WINDOWS = 5
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Enough(Exception):
    """There is nothing more to measure."""


@dataclass
class Watch:
    """Times a training through its two callbacks, `advance` and `validate`."""

    score: Callable[[nn.Module], float]
    synchronise: Callable[[], None]
    seconds: float
    target_psnr_db: float
    clock: Callable[[], float] = perf_counter
    step: int = 0
    paused: float = 0.0
    warm_up_seconds: float = math.nan
    seconds_to_target: float | None = None
    best_psnr_db: float = -math.inf
    windows: list[tuple[int, float]] = field(default_factory=list)
    """Steps and seconds between two validations."""
    disturbance: "Disturbance | None" = None
    """Since the warm-up: compiling leaves processes behind that are not the machine's other work."""

    def __post_init__(self) -> None:
        self.start = self.clock()
        self.mark: tuple[int, float] | None = None

    def now(self) -> float:
        """Seconds of training."""
        return self.clock() - self.start - self.paused

    def advance(self, steps: int, note: str = "") -> None:  # noqa: ARG002 - as the trainer calls it
        """After every step. Waits for the device at the end of the warm-up alone."""
        self.step += steps
        if self.mark is None and self.step >= WARM_UP_STEPS:
            self.synchronise()
            self.warm_up_seconds = self.now()
            self.mark = self.step, self.warm_up_seconds
            self.disturbance = Disturbance()
        elif self.mark is not None and steps and self.now() - self.warm_up_seconds > self.seconds:
            self._close_window()
            raise Enough

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Close a window and score `network`, which takes no time on this clock."""
        self._close_window()
        began = self.clock()
        psnr_db = self.score(network)
        self.synchronise()
        self.best_psnr_db = max(self.best_psnr_db, psnr_db)
        self.paused += self.clock() - began
        if self.seconds_to_target is None and psnr_db >= self.target_psnr_db:
            self.seconds_to_target = self.now()
        if self.seconds_to_target is not None and len(self.windows) >= LEAST_WINDOWS:
            raise Enough
        return {"psnr_db": psnr_db}

    def _close_window(self) -> None:
        self.synchronise()
        now = self.now()
        if self.mark is not None and self.step > self.mark[0]:
            self.windows.append((self.step - self.mark[0], now - self.mark[1]))
            self.mark = self.step, now

    @property
    def steps_per_second(self) -> float:
        """The median window's, so that a moment in which the machine was busy does not count."""
        return statistics.median(steps / seconds for steps, seconds in self.windows)


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Score:
    """Mean PSNR of a network on the validation pairs, which lie on the device; `pixels` LR pixels at a time."""

    def __init__(self, train: Pairs, val: Pairs, device: torch.device, pixels: int) -> None:
        self.normalisation = fit_normalisation(train)
        self.data_range = data_range_of(train.hr, train.hr_mask)
        self.lr, self.hr, noise = (as_tensor(images, device) for images in (val.lr, val.hr, val.lr_noise))
        self.mask = torch.tensor(val.hr_mask, device=device)
        self.amplitude = self.normalisation.amplitude(noise)
        self.chunk = max(1, pixels // math.prod(val.lr.shape[-2:]))  # no larger than what trains: not a peak of memory

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> float:
        """dB, of the noiseless truth."""
        total = 0.0
        for first in range(0, len(self.lr), self.chunk):
            part = slice(first, first + self.chunk)
            amplitude = self.amplitude[part]
            output = network(self.normalisation.to_network_lr(self.lr[part], amplitude)).float()
            flux = self.normalisation.from_network_hr(output, amplitude)
            total += float(psnr(flux, self.hr[part], self.data_range, self.mask[part]).sum())
        return total / len(self.lr)


class Memory:
    """The most memory that was in use from now on, beyond what is in use now on a CPU: the network's, the optimiser's,
    activations and what compiling takes. On a GPU it is what torch allocated, images that live there included.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark begins anew
            self.before = _status_bytes("VmRSS")

    def peak_bytes(self) -> int | None:
        """None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = _status_bytes("VmHWM")
        return None if peak is None or self.before is None else peak - self.before


def _status_bytes(key: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(fields[key].split()[0]) * 1024


class Disturbance:
    """How many cores were busy, from now on, with what neither this process nor its finished children did."""

    def __init__(self) -> None:
        self.before = self._read()

    def cores(self) -> float | None:
        """The mean; None where the system does not tell."""
        now, cpu, others = (end - start for end, start in zip(self._read(), self.before, strict=True))
        return None if math.isnan(others) else max(0.0, (others - cpu) / now)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """The time, and the CPU seconds of this process and its children and of the whole machine."""
        own, machine = os.times(), Path("/proc/stat")
        busy = math.nan
        if machine.is_file():
            fields = [int(one) for one in machine.read_text(encoding="ascii").partition("\n")[0].split()[1:9]]
            idle = fields[3] + fields[4]
            busy = (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")
        return perf_counter(), sum(own[:4]), busy


def training_flops(network: nn.Module, lr: torch.Tensor) -> int:
    """Floating-point operations (a multiplication and an addition are two) of forward and backward for (1,C,h,w) `lr`.

    Matrix products, convolutions and attention count, as for the peak; all else is left out. The network's gradients
    and batch statistics change.
    """
    network.to(lr.device).train()
    with FlopCounterMode(display=False) as counter:
        network(lr).float().mean().backward()
    return counter.get_total_flops()


def matrix_peak(device_name: str, precision: str, repeats: int = 20) -> float:
    """FLOP a second of the fastest of several products of large square matrices.

    On a GPU float32 products may use TF32, as torch lets its float32 convolutions do.
    """
    device = torch.device(device_name)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(PRECISIONS[precision]) for _ in range(2))
    best = math.inf
    for _ in range(repeats + 1):
        synchronise(device)
        began = perf_counter()
        torch.matmul(left, right)
        synchronise(device)
        best = min(best, perf_counter() - began)
    return 2 * size**3 / best
