"""From settings to a data set on disk: workers draw and render samples, shards are written as they fill up."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from .audit import audit_record, audit_sample, read_audits
from .errors import InputError
from .instruments import Instrument, load_instrument, psf_kernel
from .populations import POPULATIONS
from .priors import Prior
from .progress import progress_bar
from .provenance import provenance
from .sample import draw_sample, instruments, observe_sample, render_scenes, simulate_sample
from .scene import Scene, SceneSettings
from .seeing import check_seeing, seeing_kernels
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
from .sources import SPLITS, Split
from .workers import in_order, worker_pool

if TYPE_CHECKING:
    import torch

SAMPLES_PER_TASK = 8
GPU_BLOCK = 128
"""Samples that a GPU renders at once: always the same ones, whatever the shards, so that they stay the same bytes."""


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
    lr_peak_signal_to_noise: Prior | None = None
    """S/N of the LR pixel where it is highest, by a longer or shorter exposure; None: the LR instrument's exposure."""
    lr_psf_fwhm_arcsec: Prior | None = None
    """FWHM of the LR instrument's PSF, each pair's own; None: the LR instrument's, for all."""
    engine: Literal["torch", "lenstronomy"] = "torch"
    truth_maps: bool = False
    """Store convergence, deflection, unlensed source and lens light of every sample, too."""
    shard_size: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.classes if name not in POPULATIONS]
        if unknown or len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError(f"classes must be different ones of {', '.join(POPULATIONS)}; found {list(self.classes)}")
        if self.lr_peak_signal_to_noise is not None:
            self.lr_peak_signal_to_noise.require("lr_peak_signal_to_noise", 1e-3)
        if self.lr_psf_fwhm_arcsec is not None:
            self.lr_psf_fwhm_arcsec.require("lr_psf_fwhm_arcsec", 1e-3)
        if self.hr_size % self.scale:
            raise ValueError(f"hr_size {self.hr_size} must be a multiple of scale {self.scale}")
        return self

    def resolve(self) -> "SimulateSettings":
        """The same settings with instruments in full, instead of by name. Raises `InputError` if they do not match."""
        instruments = {
            side: one if isinstance(one := getattr(self, side), Instrument) else load_instrument(one)
            for side in ("hr_instrument", "lr_instrument")
        }
        if self.lr_psf_fwhm_arcsec is not None:
            check_seeing(instruments["lr_instrument"])
        ratio = instruments["lr_instrument"].pixel_scale_arcsec / instruments["hr_instrument"].pixel_scale_arcsec
        if abs(ratio - self.scale) > 1e-6:
            raise InputError(
                f"simulate.scale is {self.scale}, but the LR pixel is {ratio:g} times the HR pixel; "
                "change scale or an instrument's pixel_scale_arcsec"
            )
        return self.model_copy(update=instruments)

    @property
    def ray_spacing_arcsec(self) -> float:
        """Distance of neighbouring rays, of resolved settings."""
        return instruments(self)[0].pixel_scale_arcsec / self.scene.supersampling

    @property
    def total_count(self) -> int:
        """Samples of all splits together."""
        return self.counts.train + self.counts.val + self.counts.test

    def split_of(self, index: int) -> Split:
        """The split that sample `index` belongs to: they follow one another."""
        after_train = index - self.counts.train
        return "train" if after_train < 0 else "val" if after_train < self.counts.val else "test"


def _simulate_task(settings: SimulateSettings, seed: int, indices: list[int]) -> list[dict[str, Any]]:
    return [simulate_sample(settings, seed, index, settings.split_of(index)) for index in indices]


def _draw_task(settings: SimulateSettings, seed: int, indices: range) -> list[tuple[Scene, np.random.Generator]]:
    return [draw_sample(settings, seed, index, settings.split_of(index)) for index in indices]


def _audit_task(settings: SimulateSettings, seed: int, index: int) -> dict[str, float]:
    return audit_sample(settings, seed, index, settings.split_of(index))


def assemble(settings: SimulateSettings, samples: list[dict[str, Any]]) -> Pairs:
    """Samples side by side, with what the instruments are."""
    stacked = {name: np.stack([sample[name] for sample in samples]) for name in ("hr", "hr_noisy", "lr", "lr_noise")}
    truth = {name: np.stack([one["truth"][name] for one in samples]) for name in samples[0].get("truth", {})}
    spacing, sides = settings.ray_spacing_arcsec, instruments(settings)
    kernels = [psf_kernel(instrument.psf, spacing) for instrument in sides]
    if settings.lr_psf_fwhm_arcsec is not None:
        fwhms_arcsec = [sample["lr_psf_fwhm_arcsec"] for sample in samples]
        kernels[1] = seeing_kernels(sides[1].psf, fwhms_arcsec, settings.lr_psf_fwhm_arcsec, spacing)
    bands = [Band(one.name, one.pixel_scale_arcsec, psf, spacing) for one, psf in zip(sides, kernels, strict=True)]
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
        truth=truth,
    )


def _plan(folder: Path, settings: SimulateSettings) -> list[tuple[str, Path, range]]:
    """Every shard: its split, path and sample indices. Splits follow one another, so no scene is in two of them."""
    shards: list[tuple[str, Path, range]] = []
    first = 0
    for split in SPLITS:
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
        for split in SPLITS:
            if (folder / split).exists():
                shutil.rmtree(folder / split)
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


def _samples(
    pool: ProcessPoolExecutor,
    settings: SimulateSettings,
    seed: int,
    indices: list[int],
    device: "torch.device | None",
    ahead: int,
) -> Iterator[dict[str, Any]]:
    """Samples `indices` (ascending), in order: rendered by the workers, or drawn by them and rendered on `device`."""
    size = SAMPLES_PER_TASK if device is None else GPU_BLOCK
    blocks = sorted({index // size for index in indices})
    wanted = set(indices)
    if device is None:
        tasks = [[index for index in range(block * size, (block + 1) * size) if index in wanted] for block in blocks]
        for part in in_order(pool, partial(_simulate_task, settings, seed), tasks, ahead):
            yield from part
        return
    whole = [range(block * size, min((block + 1) * size, settings.total_count)) for block in blocks]
    drawn = in_order(pool, partial(_draw_task, settings, seed), whole, ahead)
    for block, scenes in zip(whole, drawn, strict=True):
        images = render_scenes(settings, [scene for scene, _ in scenes], device)
        for index, (scene, rng), pair in zip(block, scenes, images, strict=True):
            if index in wanted:
                yield observe_sample(settings, index, scene, rng, pair)


def _try_out(settings: SimulateSettings, seed: int) -> None:
    """Draw a lens of each class and split, so that what is wrong is known before anything is written."""
    for instrument in instruments(settings):
        psf_kernel(instrument.psf, settings.ray_spacing_arcsec)
    for index in range(max(len(SPLITS), len(settings.classes))):
        draw_sample(settings, seed, index, SPLITS[index % len(SPLITS)])


def simulate_run(
    run: Path,
    settings: SimulateSettings,
    seed: int,
    resume: bool,
    workers: int,
    device: "torch.device | None" = None,
    verify: int = 1,
) -> dict[str, Any]:
    """Simulate RUN/data: shards, manifest and metrics.json. Shards already there are kept with `resume`.

    Workers (processes) render on the CPU; with a CUDA `device` they draw the scenes and it renders. `verify` samples of
    each new shard are rendered again with lenstronomy, and the worst difference is stored in it. Raises `InputError` if
    the folder holds data of other settings, `RuntimeError` if a worker dies or an audit fails.
    """
    started = perf_counter()
    settings = settings.resolve()
    folder = run / "data"
    origin = provenance(settings, seed)
    if not (folder / MANIFEST_NAME).is_file():
        _try_out(settings, seed)
    _claim_folder(folder, origin, resume)
    plan = _plan(folder, settings)
    new = [(path, indices) for _, path, indices in plan if not _is_finished(path, indices)]
    gpu = device if device is not None and device.type != "cpu" and settings.engine == "torch" else None
    with (
        worker_pool(workers) as pool,
        progress_bar("simulate", sum(len(indices) for _, indices in new)) as advance,
    ):
        try:
            samples = _samples(pool, settings, seed, [one for _, indices in new for one in indices], gpu, 4 * workers)
            for path, indices in new:
                chosen = np.linspace(indices[0], indices[-1], min(verify, len(indices))).astype(int).tolist()
                audits = [pool.submit(_audit_task, settings, seed, index) for index in chosen]
                collected = []
                for _ in indices:
                    collected.append(next(samples))
                    advance(1, path.parent.name)
                found = [one.result() for one in audits]
                audit = {"audit": json.dumps(audit_record(chosen, found))} if chosen else {}
                write_shard(path, assemble(settings, collected), {**origin, **audit})
        except BrokenProcessPool:
            raise RuntimeError(
                "a simulation worker was killed (out of memory?); run again to go on from here"
            ) from None
    entries: dict[str, list[dict[str, Any]]] = {}
    for split, path, indices in plan:
        entries.setdefault(split, []).append(describe_shard(folder, path, np.array(indices)))
    written = all((folder / name).is_file() for name in (MANIFEST_NAME, "metrics.json"))
    if not new and written and read_manifest(folder)["splits"] == entries:
        return {"simulated_now": 0}  # the manifest stays as it is, so that what was trained on it stays valid
    write_manifest(folder, entries, {"kind": "simulated", "classes": list(settings.classes), **origin})
    seconds, made = perf_counter() - started, sum(len(indices) for _, indices in new)
    metrics = {
        "counts": settings.counts.model_dump(),
        "engine": settings.engine,
        "simulated_now": made,
        "seconds": round(seconds, 2),
        "lenses_per_second": round(made / seconds, 2),
        "workers": workers,
        "audit": read_audits(folder),
    }
    write_json(folder / "metrics.json", metrics)
    return metrics
