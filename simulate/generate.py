"""From settings to a data set on disk: workers draw and render samples, shards are written as they fill up."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from .errors import InputError
from .instruments import Instrument, load_instrument, psf_kernel
from .populations import POPULATIONS
from .progress import progress_bar
from .provenance import provenance
from .scene import SceneSettings, draw_scene
from .settings import Settings
from .shards import (
    MANIFEST_NAME,
    Band,
    Pairs,
    describe_shard,
    read_manifest,
    read_shard,
    write_json,
    write_manifest,
    write_shard,
    write_text,
)

SAMPLES_PER_TASK = 8
# glibc returns large arrays to the kernel at every free; keeping them makes lenstronomy up to 1.4 times as fast.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967295",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}


class SplitSettings(Settings):
    """Number of lenses in each split."""

    train: int = Field(600, ge=1)
    val: int = Field(60, ge=1)
    test: int = Field(150, ge=1)


class SimulateSettings(Settings):
    """What to simulate: how many lenses, how large, of which kinds, through which instruments."""

    counts: SplitSettings = SplitSettings()
    classes: tuple[str, ...] = ("axion", "cdm", "none")
    hr_instrument: Instrument | str = "hst-acs-f814w"
    lr_instrument: Instrument | str = "euclid-vis"
    hr_size: int = Field(96, ge=8)
    scale: int = Field(2, ge=1, le=16)
    scene: SceneSettings = SceneSettings()
    shard_size: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.classes if name not in POPULATIONS]
        if unknown or len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"classes must be different ones of {', '.join(POPULATIONS)}; found {list(self.classes)}")
        if self.hr_size % self.scale:
            raise ValueError(f"hr_size {self.hr_size} must be a multiple of scale {self.scale}")
        return self

    def resolve(self) -> "SimulateSettings":
        """The same settings with instruments in full, instead of by name. Raises `InputError` if they do not match."""
        instruments = {
            side: one if isinstance(one := getattr(self, side), Instrument) else load_instrument(one)
            for side in ("hr_instrument", "lr_instrument")
        }
        ratio = instruments["lr_instrument"].pixel_scale_arcsec / instruments["hr_instrument"].pixel_scale_arcsec
        if abs(ratio - self.scale) > 1e-6:
            raise InputError(
                f"simulate.scale is {self.scale}, but the LR pixel is {ratio:g} times the HR pixel; "
                "change scale or an instrument's pixel_scale_arcsec"
            )
        return self.model_copy(update=instruments)


def simulate_sample(settings: SimulateSettings, seed: int, index: int) -> dict[str, Any]:
    """Sample `index`: its images, label and scene. Depends on the settings and (seed, index) alone."""
    from .lenstronomy_engine import render_pair

    assert isinstance(settings.hr_instrument, Instrument)
    assert isinstance(settings.lr_instrument, Instrument)
    rng = np.random.default_rng([seed, index])
    label = index % len(settings.classes)
    field_radius_arcsec = settings.hr_size * settings.hr_instrument.pixel_scale_arcsec / np.sqrt(2)
    scene = draw_scene(settings.classes[label], settings.scene, field_radius_arcsec, rng)
    size, supersampling = settings.hr_size, settings.scene.supersampling
    pair = render_pair(scene, settings.hr_instrument, settings.lr_instrument, size, settings.scale, supersampling, rng)
    images = {name: image.astype(np.float32)[None] for name, image in vars(pair).items()}
    return {**images, "label": label, "index": index, "name": scene.to_json()}


def _simulate_task(settings: SimulateSettings, seed: int, indices: range) -> list[dict[str, Any]]:
    return [simulate_sample(settings, seed, index) for index in indices]


def assemble(settings: SimulateSettings, samples: list[dict[str, Any]]) -> Pairs:
    """Samples side by side, with what the instruments are."""
    stacked = {name: np.stack([sample[name] for sample in samples]) for name in ("hr", "hr_noisy", "lr", "lr_noise")}
    bands = []
    for instrument in (settings.hr_instrument, settings.lr_instrument):
        assert isinstance(instrument, Instrument)
        assert isinstance(settings.hr_instrument, Instrument)
        fine_scale = settings.hr_instrument.pixel_scale_arcsec / settings.scene.supersampling
        kernel = psf_kernel(instrument.psf, fine_scale)
        bands.append(Band(instrument.name, instrument.pixel_scale_arcsec, kernel, fine_scale))
    return Pairs(
        **stacked,
        hr_mask=np.ones(stacked["hr"].shape, bool),
        label=np.array([sample["label"] for sample in samples], np.int8),
        index=np.array([sample["index"] for sample in samples], np.int64),
        name=tuple(sample["name"] for sample in samples),
        classes=settings.classes,
        unit="nJy",
        hr_band=bands[0],
        lr_band=bands[1],
        kind="simulated",
    )


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that child processes read when they start."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _plan(folder: Path, settings: SimulateSettings) -> list[tuple[str, Path, range]]:
    """Every shard: its split, path and sample indices. Splits follow one another, so no scene is in two of them."""
    shards, first = [], 0
    for split in ("train", "val", "test"):
        count = getattr(settings.counts, split)
        for number, start in enumerate(range(first, first + count, settings.shard_size)):
            stop = min(start + settings.shard_size, first + count)
            shards.append((split, folder / split / f"shard-{number:05d}.h5", range(start, stop)))
        first += count
    return shards


def _is_finished(path: Path, indices: range) -> bool:
    """Whether this shard was written whole before; a damaged one is made again."""
    try:
        return path.is_file() and read_shard(path).index.tolist() == list(indices)
    except InputError:
        return False


def _claim_folder(folder: Path, origin: dict[str, str | int], resume: bool) -> None:
    """Refuse to mix two configurations in one folder; with `resume` off, empty it first."""
    marker = folder / "simulate.json"
    if not resume and folder.exists():
        if any(folder.iterdir()) and not marker.is_file():
            raise InputError(
                f"{folder}: was not made by `pipeline simulate`, so --fresh does not empty it; move it away"
            )
        for made in ("train", "val", "test"):
            if (folder / made).exists():
                shutil.rmtree(folder / made)
        for made in (MANIFEST_NAME, "metrics.json", marker.name):
            (folder / made).unlink(missing_ok=True)
    identity = {"config_sha256": origin["config_sha256"], "seed": origin["seed"]}
    if marker.is_file():
        if marker.read_text(encoding="utf-8") != json.dumps(identity):
            raise InputError(
                f"{folder}: holds data of another configuration or seed; use --fresh to replace them, or another --out"
            )
    else:
        write_text(marker, json.dumps(identity))


def simulate_run(run: Path, settings: SimulateSettings, seed: int, resume: bool, workers: int) -> dict[str, Any]:
    """Simulate RUN/data: shards, manifest and metrics.json. Shards already there are kept with `resume`.

    Raises `InputError` if the folder holds data of other settings, `RuntimeError` if a worker dies.
    """
    started = perf_counter()
    settings = settings.resolve()
    folder = run / "data"
    origin = provenance(settings, seed)
    _claim_folder(folder, origin, resume)
    plan = _plan(folder, settings)
    entries: dict[str, list[dict[str, Any]]] = {}
    made = 0
    context = get_context("spawn")  # forking a process that runs threads can deadlock
    with (
        _environment(WORKER_ENVIRONMENT),
        ProcessPoolExecutor(max(1, workers), mp_context=context) as pool,
        progress_bar("simulate", sum(len(indices) for _, _, indices in plan)) as advance,
    ):
        try:
            for split, path, indices in plan:
                if not _is_finished(path, indices):
                    tasks = [
                        indices[start : start + SAMPLES_PER_TASK] for start in range(0, len(indices), SAMPLES_PER_TASK)
                    ]
                    samples: list[dict[str, Any]] = []
                    for part in pool.map(partial(_simulate_task, settings, seed), tasks):
                        samples.extend(part)
                        advance(len(part), split)
                    write_shard(path, assemble(settings, samples), origin)
                    made += len(indices)
                else:
                    advance(len(indices), f"{split} (kept)")
                entries.setdefault(split, []).append(describe_shard(folder, path, np.array(indices)))
        except BrokenProcessPool:
            raise RuntimeError(
                "a simulation worker was killed (out of memory?); run again to go on from here"
            ) from None
    written = all((folder / name).is_file() for name in (MANIFEST_NAME, "metrics.json"))
    if made == 0 and written and read_manifest(folder)["splits"] == entries:
        return {"simulated_now": 0}  # the manifest stays as it is, so that what was trained on it stays valid
    write_manifest(folder, entries, {"kind": "simulated", "classes": list(settings.classes), **origin})
    seconds = perf_counter() - started
    metrics = {
        "counts": settings.counts.model_dump(),
        "simulated_now": made,
        "seconds": round(seconds, 2),
        "lenses_per_second": round(made / seconds, 2),
        "workers": workers,
    }
    write_json(folder / "metrics.json", metrics)
    return metrics
