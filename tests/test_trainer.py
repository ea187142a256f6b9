"""The loop in all the ways it can be run: parts of batches, processes, precisions, stages, losses, and out of time."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from pipeline import app
from simulate.errors import InputError
from simulate.shards import read_pairs
from sr.adversarial import AdversarialSettings, Adversary
from sr.config import RunConfig, keep_config
from sr.losses import LossContext
from sr.model_folder import load_model
from sr.models.srgan import Discriminator
from sr.normalisation import fit_normalisation
from sr.plan import ModelSettings
from sr.samples import Batch, load_samples
from sr.schedule import LargePatchSettings, LoopSettings, scheduled_learning_rate
from sr.trainer import OutOfTimeError, Trainer
from sr.training import train_run

from .conftest import blob_pairs
from .test_trained_model import CPU, TINY, tiny_model
from .test_training import QUICK, blob_samples, ignore, quick_settings


def trained(architecture: str, context: LossContext | None = None, **changes: Any) -> tuple[Trainer, list[dict]]:
    trainer = Trainer(
        tiny_model(architecture).network,
        blob_samples(),
        LoopSettings(**(QUICK | {"steps": 5} | changes)),
        seed=0,
        context=context or LossContext(),
    )
    rows: list[dict] = []
    collect = trainer._collect

    def keep() -> dict[str, Any]:
        rows.append(collect())
        return dict(rows[-1])

    trainer._collect = keep  # type: ignore[method-assign]
    trainer.run(ignore)
    return trainer, rows


def distance(ours: nn.Module, theirs: nn.Module, start: nn.Module) -> float:
    """How far apart two trainings ended, over how far they went."""
    a, b, c = (torch.cat([one.detach().flatten() for one in network.parameters()]) for network in (ours, theirs, start))
    return float((a - b).norm() / (b - c).norm())


def test_a_batch_in_parts_is_the_whole_batch() -> None:
    whole, rows = trained("rcan")
    parts, same = trained("rcan", accumulate=4)
    assert distance(parts.network, whole.network, tiny_model("rcan").network) < 1e-3
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    with pytest.raises(InputError, match=r"batch_size: expected a multiple of 3.*found 4"):
        trained("rcan", accumulate=3)


@pytest.mark.parametrize("architecture", ["rcan", "srresnet", "flow"])
def test_bfloat16_follows_float32_with_float32_weights_and_outputs(architecture: str) -> None:
    _, rows = trained(architecture)
    seen: set[torch.dtype] = set()
    network = tiny_model(architecture).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    trainer = Trainer(network, blob_samples(), LoopSettings(**QUICK, precision="bfloat16"), seed=0)
    trainer.run(ignore)
    assert seen == {torch.bfloat16}
    half, rows_of_half = trained(architecture, precision="bfloat16")
    assert {tensor.dtype for tensor in half.network.parameters()} == {torch.float32}
    assert half.network(blob_samples().lr).dtype == torch.float32
    assert [row["loss"] for row in rows_of_half] == pytest.approx([row["loss"] for row in rows], rel=0.03)
    assert rows_of_half != rows
    assert not LoopSettings().uses_bfloat16(CPU)
    assert not LoopSettings().compiles(CPU)


def test_a_compiled_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = trained("rcan")
    captured = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))  # needs no C++ compiler
    compiled, same = trained("rcan", compile=True)
    assert captured
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    assert set(compiled.network.state_dict()) == set(tiny_model("rcan").network.state_dict())


def test_the_large_patch_stage_has_crops_and_rates_of_its_own() -> None:
    stage = LargePatchSettings(steps=10, crop_size=14, learning_rate=1e-4, batch_size=2)
    settings = LoopSettings(**QUICK, large_patch=stage, final_learning_rate_fraction=0.0)
    assert settings.total_steps == 30
    assert [settings.batch_at(step) for step in (1, 20, 21, 30)] == [(4, 10), (4, 10), (2, 14), (2, 14)]
    rates = [scheduled_learning_rate(step, settings) for step in (20, 25, 30)]
    assert rates == pytest.approx([0, 0.5e-4, 0], abs=1e-12)
    network, shapes = tiny_model("rcan").network, []
    network.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    result = Trainer(network, blob_samples(), settings, seed=0).run(ignore)
    assert result.kept_step == 30
    assert shapes == [(4, 1, 10, 10)] * 20 + [(2, 1, 14, 14)] * 10


def test_each_term_of_a_loss_is_logged_and_their_sum_is_learned() -> None:
    _, rows = trained("rcan", LossContext(data_range=10.0), loss={"l1": 0.5, "mse": 0.1, "ssim": 1.0})
    for row in rows:
        parts = [row[f"{name}_loss"] for name in ("l1", "mse", "ssim")]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
        assert all(math.isfinite(part) and part > 0 for part in parts)
    _, alone = trained("rcan", loss={"l1": 0.5})
    assert set(alone[0]) == {"step", "learning_rate", "loss", "gradient_norm"}
    assert alone[0]["loss"] != rows[0]["l1_loss"]
    with pytest.raises(InputError, match="loss ssim: needs the data range"):
        trained("rcan", loss="ssim")


def test_a_network_with_a_loss_of_its_own_is_trained_by_it() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.draws: list[float] = []

        def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
            self.draws.append(float(torch.rand((), generator=generator)))
            return (self.weight - batch.lr.numel()) ** 2

    def draws(**changes: Any) -> list[float]:
        network = Own()
        Trainer(network, blob_samples(), LoopSettings(**(QUICK | {"steps": 3} | changes)), seed=5).run(ignore)
        return network.draws

    assert draws() == draws()
    assert len(set(draws())) == 3
    assert len(set(draws(accumulate=2))) == 6  # each part has noise of its own


def test_out_of_time_keeps_the_step_and_goes_on_to_the_same_bits(blob_run: Callable[..., Path]) -> None:
    run, settings = blob_run(), quick_settings("rcan", "srgan", log_interval=4, checkpoint_interval=100)
    train_run(run, settings, 0, CPU, resume=False)
    straight = {name: load_file(run / "train" / name / "model.safetensors") for name in ("rcan", "srgan")}
    stops: list[str] = []
    resume = False
    while len(stops) < 20:
        try:
            train_run(run, settings, 0, CPU, resume=resume, deadline=time.monotonic() + 0.2)
            break
        except OutOfTimeError as error:
            stops.append(str(error))
        resume = True
    else:
        # a machine this slow has shown that it stops; the rest in one go
        train_run(run, settings, 0, CPU, resume=True)
    assert stops
    assert all("out of time" in stop for stop in stops)
    for name, weights in straight.items():
        for key, tensor in load_file(run / "train" / name / "model.safetensors").items():
            assert torch.equal(tensor, weights[key]), (name, key)
    with pytest.raises(OutOfTimeError, match="rcan: out of time before it went on"):
        train_run(run, settings, 0, CPU, resume=False, deadline=time.monotonic())


def test_warm_start_and_partial_freezing_are_in_the_card_and_the_identity(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    train_run(run, quick_settings("rcan"), 0, CPU, resume=False)
    start = run / "train/rcan"
    before = load_file(start / "model.safetensors")
    model = ModelSettings(
        architecture="rcan", settings=TINY["rcan"], name="next", warm_start=start, trainable=("upsampling",)
    )
    settings = quick_settings(steps=2).model_copy(update={"models": (model,)})
    train_run(run, settings, 0, CPU, resume=True)
    after = load_file(run / "train/next/model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("upsampling.") for name in changed)
    training = json.loads((run / "train/next/config.json").read_text())["training"]
    assert training["warm_start"]["model"] == "rcan"
    assert training["trainable"] == ["upsampling"]
    assert training["devices"] == ["cpu"]
    train_run(run, quick_settings("rcan"), 1, CPU, resume=False)  # another model to start from
    with pytest.raises(InputError, match="next: holds a model of other settings"):
        train_run(run, settings, 0, CPU, resume=True)


def test_a_content_loss_trains_its_encoder_once(blob_run: Callable[..., Path], capfd: pytest.CaptureFixture) -> None:
    run = blob_run()
    content = {"features": 4, "latent": 2, "steps": 3, "crop_size": 16}
    settings = quick_settings("rcan", "fsrcnn", steps=2, loss={"l1": 1, "content": 0.1}, content=content)
    metrics = train_run(run, settings, 0, CPU, resume=False)
    assert set(metrics["models"]) == {"rcan", "fsrcnn"}
    rows = [json.loads(line) for line in (run / "train/rcan/log.jsonl").read_text().splitlines()]
    assert rows[-1]["content_loss"] > 0
    assert (run / "train/.content").is_dir()
    assert json.loads((run / "train/rcan/config.json").read_text())["training"]["content"]["features"] == 4
    other = quick_settings("rcan", steps=2, loss={"l1": 1, "content": 0.1}, content=content | {"steps": 4})
    with pytest.raises(InputError, match="rcan: holds a model of other settings"):
        train_run(run, other, 0, CPU, resume=True)
    capfd.readouterr()


def test_two_processes_train_as_one(blob_run: Callable[..., Path], tmp_path: Path) -> None:
    names = ("srresnet", "rcan", "srgan")
    settings = quick_settings(*names, steps=6, loss={"l1": 1.0, "mse": 0.1})
    run, other = blob_run(), tmp_path / "two"
    train_run(run, settings, 0, CPU, resume=False)
    other.mkdir()
    (other / "data").symlink_to(run / "data")
    keep_config(RunConfig(seed=0, train=settings), other)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "pipeline", "train", "--out", str(other), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: ") == 1
    val = read_pairs(run / "data", "val")
    for name in names:
        # not the weights: what is in front of batch normalisation has biases whose gradients are rounding errors
        one, two = (
            load_model(where / "train" / name, CPU).super_resolve(val.lr, val.lr_noise, CPU) for where in (run, other)
        )
        assert np.linalg.norm(one - two) < 1e-3 * np.linalg.norm(one - val.hr)
        rows, same = (
            [json.loads(line) for line in (where / "train" / name / "log.jsonl").read_text().splitlines()]
            for where in (run, other)
        )
        for row, pair in zip(rows, same, strict=True):
            assert row == pytest.approx(pair, rel=2e-3)


def test_torchrun_is_for_training_alone(tmp_path: Path) -> None:
    environment = os.environ | {"WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "pipeline", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "`doctor` in one" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("architecture", ["fsrcnn", "srresnet", "rcan", "srgan", "flow"])
def test_a_step_on_a_gpu_does_not_wait_for_it(architecture: str) -> None:
    cuda = torch.device("cuda")
    pairs = blob_pairs(6)
    samples = load_samples(pairs, fit_normalisation(pairs), "hr", cuda)
    adversary = None
    if architecture == "srgan":
        discriminator = Discriminator(20, 1, features=8, dense=16).to(cuda)
        adversary = Adversary(discriminator, AdversarialSettings(warm_start_fraction=0), 20, autocast=True)
    trainer = Trainer(tiny_model(architecture).network, samples, LoopSettings(**QUICK, compile=False), 0, adversary)
    trainer._step(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 6):
            trainer._step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer._collect()["step"] == 5


def test_the_command_stops_in_time_and_goes_on(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    keep_config(RunConfig(seed=0, train=quick_settings("rcan")), run)
    command = ["train", "--out", str(run), "--device", "cpu"]
    stopped = CliRunner().invoke(app, [*command, "--minutes", "0"])
    assert stopped.exit_code == 3
    assert "rcan: out of time before it went on; the same command goes on from there" in stopped.stderr
    assert not (run / "train/metrics.json").exists()
    done = CliRunner().invoke(app, [*command, "--minutes", "60"])
    assert done.exit_code == 0, done.output
    assert (run / "train/rcan/model.safetensors").is_file()
