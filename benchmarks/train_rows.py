"""One row of the training benchmark: one model, trained one way, in a process of its own until there is enough to tell.

The same run gives everything: steps are timed between validations (with the device synchronised there and nowhere
else), the clock stands still while validating, and the run ends when the target PSNR is reached or the time is up. A
process of its own makes peak memory that of this row, and what hangs or crashes costs no other row.
"""

import copy
import math
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from simulate.shards import read_pairs
from sr.models import build_network, parameter_count, resolve_settings
from sr.normalisation import fit_normalisation
from sr.samples import Samples, draw_batch, load_samples
from sr.schedule import LoopSettings, averaging_decay, scheduled_learning_rate
from sr.trainer import Trainer

from .peers.basicsr_loop import PlainLoop, Recipe
from .train_gauges import WARM_UP_STEPS, Enough, Memory, Score, Watch, synchronise, training_flops

PLAIN = "plain"
LOOPS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "bfloat16": {"precision": "bfloat16", "compile": False},
    "bfloat16-compiled": {"precision": "bfloat16", "compile": True},
    "float32": {"precision": "float32", "compile": False},
    "float32-compiled": {"precision": "float32", "compile": True},
}
"""Ways to train: the peer, and settings of our loop. In the order in which they are measured."""


@dataclass(frozen=True)
class Row:
    """What to measure."""

    architecture: str
    size: str
    loop: str
    device: str
    data: Path
    """Folder of a data set."""
    batch_size: int
    crop_size: int
    steps: int
    """At most, and those of the schedule."""
    learning_rate: float
    """The highest of the schedule."""
    seconds: float
    """At most, after the warm-up."""
    target_psnr_db: float
    validation_interval: int
    workers: int
    """Processes that load for the plain loop."""
    seed: int = 0


def measure_row(row: Row) -> dict[str, Any]:
    """Train, and say how it went. For the process of this row alone."""
    device, loop = torch.device(row.device), LOOPS[row.loop]
    train, val = read_pairs(row.data, "train"), read_pairs(row.data, "val")
    settings = resolve_settings(row.architecture, row.size)
    torch.manual_seed(row.seed)
    network = build_network(row.architecture, settings, train.scale, train.lr.shape[1])
    same = ("steps", "batch_size", "crop_size", "learning_rate", "validation_interval")
    recipe = LoopSettings.model_validate({**{name: getattr(row, name) for name in same}, **loop})
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing compiled by an earlier row
        home = torch.device("cpu") if row.loop == PLAIN else device
        samples = load_samples(train, fit_normalisation(train), "hr", home)
        if row.loop == PLAIN:
            _write_images(Path(folder), samples)
        batch = draw_batch(samples, 1, row.crop_size, False, torch.Generator(samples.device))
        fresh = copy.deepcopy(network)
        score = Score(train, val, device, row.batch_size * row.crop_size**2)
        memory = Memory(device)
        watch = Watch(score, partial(synchronise, device), row.seconds, row.target_psnr_db)
        with suppress(Enough):
            if row.loop == PLAIN:
                _run_plain(network, Path(folder), recipe, device, row, watch)
            else:
                Trainer(network, samples, recipe, row.seed).run(watch.advance, watch.validate)
        peak_bytes = memory.peak_bytes()
        disturbed_cores = watch.disturbance.cores() if watch.disturbance else None
    if not watch.windows:
        raise ValueError(f"{watch.step} steps are too few to time; the warm-up alone takes {WARM_UP_STEPS}")
    images_per_second = watch.steps_per_second * row.batch_size
    flops = training_flops(fresh, batch.lr)
    return {
        "parameters": parameter_count(fresh),
        "images_per_second": images_per_second,
        "flops_per_second": images_per_second * flops,
        "flops_per_image": flops,
        "peak_memory_bytes": peak_bytes,
        "disturbed_cores": disturbed_cores,
        "warm_up_seconds": watch.warm_up_seconds,
        "steps": watch.step,
        "windows": [list(window) for window in watch.windows],
        "trained_seconds": watch.warm_up_seconds + sum(seconds for _, seconds in watch.windows),
        "seconds_to_target": watch.seconds_to_target,
        "best_psnr_db": watch.best_psnr_db if math.isfinite(watch.best_psnr_db) else None,
    }


def _run_plain(
    network: nn.Module, folder: Path, settings: LoopSettings, device: torch.device, row: Row, watch: Watch
) -> None:
    recipe = Recipe(
        steps=row.steps,
        batch_size=row.batch_size,
        crop_size=row.crop_size,
        learning_rate=partial(scheduled_learning_rate, settings=settings),
        average_decay=partial(averaging_decay, ema_decay=settings.ema_decay),
        gradient_clip=settings.gradient_clip or math.inf,
    )
    loop = PlainLoop(network, folder, recipe, device, row.workers, row.seed)
    loop.run(watch.advance, watch.validate, row.validation_interval)


def _write_images(folder: Path, samples: Samples) -> None:
    for name in ("lr", "hr"):
        np.save(folder / f"{name}.npy", getattr(samples, name).numpy())


def in_process(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """`function(*arguments)` in a new process. Raises `RuntimeError`, with the reason, if it fails or takes longer."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # once, and in no row's time; Adam wants the latter
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise RuntimeError(f"stopped after {seconds:.0f} s")
        done, result = receiver.recv()
        process.join(10)  # it ends its own workers
    except EOFError:
        process.join()
        raise RuntimeError(f"its process died (exit code {process.exitcode}); out of memory?") from None
    finally:
        process.kill()
        process.join()
    if not done:
        raise RuntimeError(result)
    return result


def _send_result(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((True, function(*arguments)))
    except Exception as error:
        traceback.print_exc()
        sender.send((False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"))
