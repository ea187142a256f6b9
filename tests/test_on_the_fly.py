"""Lenses simulated while training goes on: which ones, in what order, at what cost; and what happens when it fails."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.signal import fftconvolve
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import simulate.stream
from simulate.errors import InputError
from simulate.generate import SimulateSettings, simulate_run
from simulate.instruments import load_instrument, noise_correlation_kernel
from simulate.sample import draw_sample, simulate_sample
from simulate.shards import MANIFEST_NAME, read_pairs
from simulate.stream import Block, SampleStream, open_stream
from simulate.torch_engine.blocks import draw_noise, render_block, sub_batches
from simulate.torch_engine.render import View
from sr.checkpoint import CHECKPOINT_NAME, load_checkpoint
from sr.normalisation import Normalisation
from sr.on_the_fly import OnTheFlySettings, SamplePool, stored_simulation
from sr.plan import ModelSettings, TrainSettings
from sr.schedule import LoopSettings
from sr.trainer import NonFiniteLossError, Trainer
from sr.training import train_run

from .test_trained_model import CPU, TINY, tiny_model
from .test_training import QUICK, Killed, ignore

TINY_SKY = SimulateSettings(counts={"train": 12, "val": 3, "test": 3}, hr_size=32, scene={"supersampling": 1})
MANY_HALOS = {"cdm": {"mean_count": 100}}


@contextlib.contextmanager
def in_this_process(workers: int) -> Iterator[ThreadPoolExecutor]:
    """In place of worker processes, which take seconds to start: a thread."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate.stream, "worker_pool", in_this_process)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a real, tiny simulation."""
    run = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulate.generate.ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
        simulate_run(run, TINY_SKY, seed=5, resume=True, workers=1, verify=0)
    return run


def test_workers_make_the_samples_that_simulate_would_write_until_one_dies() -> None:
    settings = TINY_SKY.resolve()
    with open_stream(TINY_SKY, 5, 18, 10, CPU, workers=1) as stream:
        blocks = stream.blocks()
        for number in range(2):
            block = next(blocks)
            assert (block.number, block.index) == (number, range(18 + 10 * number, 28 + 10 * number))
            for row in (0, 7, 9):  # in the first part, its end, and in the second
                expected = simulate_sample(settings, 5, block.index[row])
                for name, images in block.images.items():
                    assert images[row].numpy().tobytes() == expected[name].tobytes()
        again = next(stream.blocks(start=1))
        assert again.index == block.index
        assert all(torch.equal(again.images[name], block.images[name]) for name in block.images)
        for process in active_children():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a simulation worker was killed"):
            deque(blocks)
    assert not active_children()


SCRIPT = """
import os, signal, time
from simulate.workers import worker_pool

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start in the background ignore it
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_no_worker_outlives_ctrl_c_or_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(simulate.stream.__file__).parents[1])}
    runs = [
        subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        for _ in range(2)
    ]
    try:
        workers = [int(run.stdout.readline()) for run in runs]
        assert all(is_running(worker) for worker in workers)
        interrupted, killed = runs
        os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to all processes
        killed.kill()
        answer = interrupted.communicate(timeout=20)[1]
        assert answer.count("Traceback") == 1
        assert answer.rstrip().endswith("KeyboardInterrupt")
        patience = time.monotonic() + 10
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < patience
            time.sleep(0.05)
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


@pytest.mark.usefixtures("quick_workers")
def test_workers_are_only_so_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Future[Any]] = []
    submit = ThreadPoolExecutor.submit

    def count(pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Any:
        future = submit(pool, work, *arguments)
        if isinstance(arguments[0], range):  # a task of the workers, which are named so that none is missed
            asked.append(future)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", count)
    with open_stream(TINY_SKY, 5, 18, 20, CPU, workers=1) as stream:
        assert stream.tasks_ahead == 6  # two blocks of three tasks
        blocks = stream.blocks()
        for taken in range(1, 4):
            next(blocks)
            patience = time.monotonic() + 20
            while len(asked) < (most := 3 * (taken + 1) + 6 - 1) or not all(one.done() for one in asked):
                assert time.monotonic() < patience
                time.sleep(0.02)
            time.sleep(0.1)
            assert len(asked) == most


@pytest.mark.usefixtures("quick_workers")
def test_wrong_input_passes_and_any_other_failure_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    galaxies = TINY_SKY.model_copy(
        update={"scene": TINY_SKY.scene.model_validate({"source": {"kind": "galaxy", "path": tmp_path / "none.fits"}})}
    )
    with open_stream(galaxies, 5, 18, 4, CPU, 1) as stream, pytest.raises(InputError, match=r"none\.fits"):
        next(stream.blocks())

    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("no source")

    monkeypatch.setattr(simulate.stream, "simulate_sample", fail)
    message = r"samples 26 to 33 \(seed 5\) cannot be simulated: ZeroDivisionError: no source"
    with open_stream(TINY_SKY, 5, 26, 20, CPU, 1) as stream, pytest.raises(RuntimeError, match=message):
        next(stream.blocks())


def test_real_galaxies_of_a_stream_are_those_of_the_training_split(observed_images: Path) -> None:
    cube = observed_images / "hst_galaxies" / "cosmos_acs_f814w.fits"
    source = {"kind": "galaxy", "path": cube, "fractions": {"train": 0.03, "val": 0.94, "test": 0.03}}
    settings = SimulateSettings(scene={"source": {**source, "least_galaxies": 1}}).resolve()
    streamed = [scene.kwargs_source for scene in simulate.stream._draw(settings, 5, range(40, 44))]
    assert streamed == [draw_sample(settings, 5, index, "train")[0].kwargs_source for index in range(40, 44)]
    assert streamed != [draw_sample(settings, 5, index, "test")[0].kwargs_source for index in range(40, 44)]


class CountingStream:
    """Blocks whose pixels are the block's number."""

    device = CPU
    size = 4
    settings = TINY_SKY

    def __init__(self) -> None:
        self.made: list[int] = []

    def blocks(self, start: int = 0) -> Iterator[Block]:
        for number in range(start, 1000):
            self.made.append(number)
            value = math.inf if number == 5 else float(number)
            hr, lr = torch.full((4, 1, 32, 32), value), torch.full((4, 1, 16, 16), 10.0 + number)
            images = {"hr": hr, "hr_noisy": hr + 0.5, "lr": lr, "lr_noise": torch.full_like(lr, 2.0)}
            yield Block(number, range(18 + 4 * number, 22 + 4 * number), images)


def counting_pool(interval: int = 5, target: Any = "hr") -> SamplePool:
    settings = OnTheFlySettings(pool_size=10, block_size=4, refresh_interval=interval)
    assert settings.blocks(stored_count=99) == 3
    return SamplePool(CountingStream(), settings, 3, Normalisation(2.0, 2), target)  # type: ignore[arg-type]


def test_the_pool_at_a_step_is_the_same_however_it_came_there() -> None:
    walked = counting_pool()
    walked.start(1, ignore_note)
    for step in range(1, 31):
        samples = walked.at(step)
        if step not in (1, 5, 6, 16, 24):  # block 5 is not finite
            continue
        newest = {1: [0, 1, 2], 5: [0, 1, 2], 6: [3, 1, 2], 16: [3, 4, 5], 24: [6, 4, 5]}[step]
        numbers = torch.tensor(newest).repeat_interleave(4)
        assert torch.equal(samples.index, 18 + 4 * numbers + torch.arange(4).repeat(3))
        expected = torch.where(numbers == 5, math.inf, numbers.float())  # 2 x 2 pixels, noise 2, factor 2
        assert torch.equal(samples.hr, expected[:, None, None, None].expand(12, 1, 32, 32))
        assert torch.equal(samples.lr, (2.5 + numbers / 4)[:, None, None, None].expand(12, 1, 16, 16))
        assert samples.mask.all()
        started = counting_pool()
        notes: list[str] = []
        started.start(step, notes.append)
        assert notes[-1] == "simulates 8 of 12 pairs"
        for name in ("hr", "lr", "mask", "index"):
            assert torch.equal(getattr(started.at(step), name), getattr(samples, name))
        assert started._stream.made == sorted(newest)  # type: ignore[attr-defined]
    noisy = counting_pool(target="hr_noisy")
    noisy.start(1, ignore_note)
    assert noisy.at(1).hr[-1, 0, 0, 0] == 2.5


def ignore_note(note: str) -> None:
    pass


def test_distinct_lenses_are_counted() -> None:
    settings = OnTheFlySettings(block_size=5, refresh_interval=3)
    assert [settings.distinct_lenses(steps, stored_count=12) for steps in (1, 3, 4, 7)] == [15, 15, 20, 25]
    pool = counting_pool(interval=3)
    pool.start(1, ignore_note)
    seen = {index for step in range(1, 8) for index in pool.at(step).index.tolist()}
    assert len(seen) == pool._settings.distinct_lenses(7, 99) == 20


def test_a_loss_that_is_not_finite_names_samples_that_have_left_the_pool() -> None:
    settings = LoopSettings(**(QUICK | {"batch_size": 64, "log_interval": 20, "validation_interval": 20}))
    trainer = Trainer(tiny_model("rcan").network, counting_pool(interval=2), settings, seed=0)
    with pytest.raises(NonFiniteLossError, match=r"step 7: loss is not finite; the batch held samples") as caught:
        trainer.run(ignore)
    named = {int(one) for one in str(caught.value).partition("[")[2].partition("]")[0].split(",")}
    assert named == set(range(18 + 4 * 3, 18 + 4 * 6))  # blocks 3, 4 and 5


def quick_settings(**changes: Any) -> TrainSettings:
    on_the_fly = {"block_size": 6, "refresh_interval": 3}
    models = (ModelSettings(architecture="fsrcnn", settings=TINY["fsrcnn"]),)
    return TrainSettings(models=models, data="on-the-fly", on_the_fly=on_the_fly, **(QUICK | {"steps": 12} | changes))


def test_training_resumes_to_the_same_bits_whatever_the_workers(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = stored, stored / "train/fsrcnn"
    straight = train_run(run, quick_settings(), 3, CPU, resume=False, workers=1)["models"]["fsrcnn"]
    assert not active_children()
    weights, log = load_file(folder / "model.safetensors"), (folder / "log.jsonl").read_text()
    assert straight["distinct_lenses"] == 12 + 3 * 6
    assert "- distinct lenses: 30\n" in (folder / "README.md").read_text(encoding="utf-8")
    training = json.loads((folder / "config.json").read_text())["training"]
    assert (training["data"], training["pool_size"], training["refresh_interval"]) == ("on-the-fly", 12, 3)

    seen: set[int] = set()
    draw, step = SamplePool.at, Trainer._step

    def watch(pool: SamplePool, number: int) -> Any:
        samples = draw(pool, number)
        seen.update(samples.index.tolist())
        return samples

    def kill(trainer: Trainer, number: int) -> None:
        if number == 9:  # after the checkpoint of step 5 and the refreshes before steps 4 and 7
            raise Killed
        step(trainer, number)

    monkeypatch.setattr(simulate.stream, "worker_pool", in_this_process)
    monkeypatch.setattr(SamplePool, "at", watch)
    monkeypatch.setattr(Trainer, "_step", kill)
    with pytest.raises(Killed):
        train_run(run, quick_settings(), 3, CPU, resume=False, workers=2)
    assert load_checkpoint(folder / CHECKPOINT_NAME)[1]["step"] == 5
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = train_run(run, quick_settings(), 3, CPU, resume=True, workers=2)["models"]["fsrcnn"]
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    assert (folder / "log.jsonl").read_text() == log
    assert resumed["validation"] == straight["validation"]
    assert seen == set(range(18, 48))
    for split in ("train", "val", "test"):
        assert seen.isdisjoint(read_pairs(run / "data", split).index.tolist())

    other = quick_settings().on_the_fly.model_copy(update={"refresh_interval": 4})
    with pytest.raises(InputError, match="holds a model of other settings"):
        train_run(run, quick_settings().model_copy(update={"on_the_fly": other}), 3, CPU, resume=True)
    train_run(run, quick_settings().model_copy(update={"data": "stored"}), 3, CPU, resume=False)
    other_weights = load_file(folder / "model.safetensors")
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in other_weights.items())


def test_data_that_cannot_go_on_are_refused_before_anything_is_lost(
    blob_run: Callable[..., Path], stored: Path, tmp_path: Path
) -> None:
    run = blob_run()
    kept = run / "train" / "fsrcnn" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(InputError, match=r"manifest\.json: no configuration of a simulation.*pipeline simulate"):
        train_run(run, quick_settings(), 0, CPU, resume=False)
    assert kept.exists()
    settings, seed = stored_simulation(stored / "data")
    assert (settings, seed) == (TINY_SKY.resolve(), 5)
    manifest = json.loads((stored / "data" / MANIFEST_NAME).read_text())
    for changes, message in (
        ({"kind": "observed HR, observed LR"}, "kind 'observed HR, observed LR'"),
        ({"config": manifest["config"] + "shrad_size: 3\n"}, r"unknown key 'shrad_size' \(did you mean 'shard_size'"),
        ({"config": "a: [1"}, "manifest.json.*not valid YAML"),
        ({"seed": None}, "no configuration of a simulation"),
    ):
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest | changes))
        with pytest.raises(InputError, match=message) as caught:
            stored_simulation(tmp_path)
        assert str(caught.value).count("data of `pipeline simulate`") == 1


def test_a_device_renders_what_the_workers_would_and_draws_noise_of_the_right_size() -> None:
    settings = SimulateSettings(hr_size=64, scene={"supersampling": 1}).resolve()
    scenes = [draw_sample(settings, 5, index, "train")[0] for index in range(24)]
    expected = [simulate_sample(settings, 5, index) for index in range(24)]

    def render(seed: int, memory_bytes: int = 2**30) -> dict[str, torch.Tensor]:
        return render_block(settings, scenes, torch.Generator().manual_seed(seed), CPU, memory_bytes)

    block, again, other, frugal = render(1), render(1), render(2), render(1, 2**23)
    for name in ("hr", "lr_noise"):
        truth = torch.from_numpy(np.stack([one[name] for one in expected]))
        torch.testing.assert_close(block[name], truth, rtol=1e-4, atol=1e-5 * float(truth.max()))
        torch.testing.assert_close(frugal[name], block[name], rtol=1e-4, atol=1e-5 * float(truth.max()))
        assert torch.equal(block[name], other[name])
    for name in ("hr_noisy", "lr"):
        assert torch.equal(block[name], again[name])
        assert not torch.equal(block[name], other[name])
    assert not torch.equal(frugal["lr"], block["lr"])  # rendered in several parts, which share one generator

    seen, noise = block["lr"], block["lr_noise"]
    pull = (seen - other["lr"]) / noise / math.sqrt(2)
    count = pull.numel()
    assert float(pull.mean()) == pytest.approx(0, abs=4 / math.sqrt(count))
    assert float(pull.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / count))


def test_noise_of_drizzled_images_is_correlated_on_a_device_as_in_numpy() -> None:
    drizzle = {"pixfrac": 0.8, "input_pixel_scale_arcsec": 0.1}
    instrument = load_instrument({**load_instrument("hst-acs-f814w").model_dump(), "drizzle": drizzle})
    kernel = noise_correlation_kernel(instrument)
    expected = fftconvolve(kernel, kernel[::-1, ::-1])  # covariance of neighbours
    middle = len(kernel) - 1
    sigma = torch.full((400, 40, 40), 3.0)
    noise = draw_noise(instrument, sigma, torch.Generator().manual_seed(0)).double().numpy() / 3
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (3, 1)):
        measured = (noise[:, dy:, dx:] * noise[:, : 40 - dy, : 40 - dx]).mean()
        assert measured == pytest.approx(expected[middle + dy, middle + dx], abs=0.01)
    assert expected[middle, middle + 1] > 0.3


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, work: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = work(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage().data_ptr()) not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[key] = storage.nbytes()
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._free, key)
        return result

    def _free(self, key: int) -> None:
        self.bytes -= self.alive.pop(key)


@pytest.mark.parametrize(
    ("kind", "scene", "count"),
    [
        ("none", {"lensing": "double-source-plane", "macro": {"multipoles": {}}}, 60),
        ("cdm", {"populations": MANY_HALOS}, 24),
        ("cdm", {"populations": {"cdm": {"mean_count": 1000}}}, 12),
        ("axion", {"lens_light": {}}, 40),
    ],
)
def test_rendering_keeps_to_its_memory(kind: str, scene: dict[str, Any], count: int) -> None:
    settings = SimulateSettings(classes=(kind,), hr_size=48, scene={"supersampling": 2, **scene}).resolve()
    scenes = [draw_sample(settings, 5, index, "train")[0] for index in range(count)]
    budget, peaks = 10 * 2**20, []
    render_block(settings, scenes[:2], torch.Generator(), CPU, budget)  # what is computed once and kept
    for allowed in (budget, 2**32):
        with PeakMemory() as memory:
            block = render_block(settings, scenes, torch.Generator(), CPU, allowed)
        peaks.append(memory.peak - sum(image.nbytes for image in block.values()))
    assert peaks[0] <= budget < peaks[1]


def test_a_budget_too_small_for_one_lens_is_refused() -> None:
    settings = SimulateSettings().resolve()
    scenes = [draw_sample(settings, 5, 2, "train")[0]] * 9
    view = View(settings.hr_instrument, settings.lr_instrument, 96, 2, 4)
    one = 4 * 20 * 384**2 + 4000 * len(scenes[0].lens_model_list)
    parts = list(sub_batches(scenes, view, 4 * one))
    assert parts == [slice(0, 4), slice(4, 8), slice(8, 9)]
    with pytest.raises(InputError, match=r"budget of 0\.022 GiB is too small.*one takes 0\.011 GiB"):
        list(sub_batches(scenes, view, one - 10_000))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_streams_the_same_lenses_again_and_in_its_memory() -> None:
    device, budget = torch.device("cuda"), 2 * 2**30
    scene = {"supersampling": 2, "populations": MANY_HALOS, "source": {"kind": "clumpy"}}
    settings = SimulateSettings(hr_size=128, scene=scene).resolve()

    def two_blocks(stream: SampleStream) -> list[Block]:
        blocks = stream.blocks()
        return [next(blocks), next(blocks)]

    with open_stream(settings, 5, 18, 256, device, workers=2, memory_bytes=budget) as stream:
        first = two_blocks(stream)
        torch.cuda.synchronize()
        again = two_blocks(stream)
        started = next(stream.blocks(1))
        for name, images in first[1].images.items():
            assert torch.equal(images, again[1].images[name])
            assert torch.equal(images, started.images[name])
        scenes = [draw_sample(settings, 5, index, "train")[0] for index in first[0].index]
    expected = simulate_sample(settings, 5, 25)["hr"]
    difference = np.abs(first[0].images["hr"][7].cpu().numpy() - expected).max()
    assert difference < 1e-4 * expected.max()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    block = render_block(settings, scenes, torch.Generator(device), device, budget)
    own = sum(image.nbytes for image in block.values())
    assert torch.cuda.max_memory_allocated() - before - own <= budget
