import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from simulate.errors import InputError
from simulate.shards import read_pairs
from sr.checkpoint import CHECKPOINT_NAME, load_checkpoint
from sr.metrics import psnr
from sr.model_folder import load_model
from sr.models import freeze_features
from sr.normalisation import fit_normalisation
from sr.plan import ModelSettings, TrainSettings
from sr.samples import Samples, draw_batch, load_samples, transform, undo_transform
from sr.schedule import LoopSettings, averaging_decay, scheduled_learning_rate
from sr.trainer import NonFiniteLossError, Trainer
from sr.training import initial_network, train_run

from .conftest import blob_pairs
from .test_trained_model import CPU, TINY, tiny_model

QUICK: dict[str, Any] = {
    "steps": 20,
    "batch_size": 4,
    "crop_size": 10,
    "log_interval": 2,
    "validation_interval": 5,
    "checkpoint_interval": 5,
}


class Killed(BaseException):
    pass


def quick_settings(*architectures: str, **changes: Any) -> TrainSettings:
    models = tuple(ModelSettings(architecture=name, settings=TINY[name]) for name in architectures)
    return TrainSettings(models=models, **(QUICK | changes))


def ignore(steps: int, note: str = "") -> None:
    pass


def blob_samples(count: int = 6, **options: int) -> Samples:
    pairs = blob_pairs(count, **options)
    return load_samples(pairs, fit_normalisation(pairs), "hr", CPU)


def test_the_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    settings = LoopSettings(steps=110, learning_rate=2e-3, warm_up_fraction=1 / 11, final_learning_rate_fraction=0.1)
    expected = {1: 2e-4, 5: 1e-3, 10: 2e-3, 60: 1.1e-3, 110: 2e-4}  # half way down is the mean of both ends
    for step, rate in expected.items():
        assert scheduled_learning_rate(step, settings) == pytest.approx(rate)


def test_the_eight_symmetries_are_those_of_the_square() -> None:
    image = np.arange(9.0).reshape(3, 3)
    expected = {np.rot90(one, turns).tobytes() for one in (image, image.T) for turns in range(4)}
    results = transform(torch.tensor(image).expand(8, 1, 3, 3), torch.arange(8)).numpy()
    assert {result[0].tobytes() for result in results} == expected
    np.testing.assert_array_equal(results[0, 0], image)


@pytest.mark.parametrize(("scale", "crop_size"), [(2, 5), (3, None)])
def test_crops_of_lr_and_hr_show_the_same_sky(scale: int, crop_size: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(7, 1, 8 * scale, 11 * scale, generator=generator)
    binned = nn.functional.avg_pool2d(hr, scale)
    samples = Samples(binned, hr, hr > 0.5, binned + 1, torch.arange(7))
    batch = draw_batch(samples, 64, crop_size, True, generator)
    lr_crop, hr_crop = batch.lr, batch.hr
    size = crop_size or 8
    assert lr_crop.shape == (64, 1, size, size)
    torch.testing.assert_close(nn.functional.avg_pool2d(hr_crop, scale), lr_crop)
    assert torch.equal(batch.mask, hr_crop > 0.5)
    assert torch.equal(batch.noise, lr_crop + 1)
    assert set(batch.rows.tolist()) == set(range(7))
    for row, symmetry, crop in zip(batch.rows, batch.symmetry, lr_crop, strict=True):
        upright = undo_transform(crop[None], symmetry[None])[0, 0]
        windows = binned[row, 0].unfold(0, size, 1).unfold(1, size, 1).flatten(0, 1)
        assert (windows == upright).all((1, 2)).sum() == 1


def test_the_average_is_the_recursion_it_says() -> None:
    trainer = Trainer(tiny_model().network, blob_samples(), LoopSettings(**QUICK, ema_decay=0.6), seed=0)
    weights = {name: tensor for name, tensor in trainer.network.state_dict().items() if tensor.is_floating_point()}
    assert any("running_var" in name for name in weights)
    expected = {name: tensor.double() for name, tensor in weights.items()}
    steps = iter(range(1, 21))

    def follow(done: int, note: str = "") -> None:
        if done:
            decay = min(0.6, averaging_decay(next(steps), 1.0))
            for name, value in expected.items():
                value.mul_(decay).add_(weights[name].double(), alpha=1 - decay)

    trainer.run(follow)
    for name, value in expected.items():
        torch.testing.assert_close(trainer.average.state_dict()[name].double(), value, rtol=1e-5, atol=1e-6)
    assert averaging_decay(1, 0.999) == pytest.approx(2 / 11)
    assert averaging_decay(10**6, 0.999) == 0.999


def test_pixels_that_are_not_real_teach_nothing() -> None:
    pairs = blob_pairs(6)
    pairs.hr_mask[:, :, :, :20] = False
    weights = []
    for value in (0.0, 1e6):
        pairs.hr[~pairs.hr_mask] = value
        network = tiny_model("rcan").network
        samples = load_samples(pairs, fit_normalisation(pairs), "hr", CPU)
        Trainer(network, samples, LoopSettings(**QUICK), seed=0).run(ignore)
        weights.append(network.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_frozen_parameters_and_statistics_stay_bit_identical() -> None:
    network = tiny_model("srresnet").network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    freeze_features(network)
    Trainer(network, blob_samples(), LoopSettings(**QUICK), seed=0).run(ignore)
    assert any("running_mean" in name for name in before)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("upsampling."), name


@pytest.mark.parametrize(
    ("architecture", "network"),
    [("srresnet", {}), ("srgan", {}), ("srgan", {"adversary": "relativistic"}), ("flow", {})],
)
def test_a_killed_training_resumes_to_the_same_bits(
    architecture: str, network: dict[str, str], blob_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = blob_run()
    model = ModelSettings(architecture=architecture, settings=TINY[architecture] | network)
    folder, settings = run / "train" / architecture, quick_settings().model_copy(update={"models": (model,)})
    straight = train_run(run, settings, 3, CPU, resume=False)
    weights = load_file(folder / "model.safetensors")
    log = (folder / "log.jsonl").read_text()
    assert [json.loads(line)["step"] for line in log.splitlines()] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]

    step = Trainer._step

    def kill(trainer: Trainer, number: int) -> None:
        if number == 13:  # after the checkpoint of step 10 and the log row of step 12
            raise Killed
        step(trainer, number)

    monkeypatch.setattr(Trainer, "_step", kill)
    with pytest.raises(Killed):
        train_run(run, settings, 3, CPU, resume=False)
    monkeypatch.undo()
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] == 12
    assert load_checkpoint(folder / CHECKPOINT_NAME)[1]["step"] == 10
    with pytest.raises(InputError, match="not a model folder"):
        load_model(folder, CPU)

    resumed = train_run(run, settings, 3, CPU, resume=True)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    assert (folder / "log.jsonl").read_text() == log
    for key in ("curve", "validation", "best_step"):
        assert resumed["models"][architecture][key] == straight["models"][architecture][key]
    assert not (folder / CHECKPOINT_NAME).exists()


def test_the_warm_start_of_srgan_is_plain_training(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    train_run(run, quick_settings("srgan"), 0, CPU, resume=False)
    rows = [json.loads(line) for line in (run / "train/srgan/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "discriminator_loss" in row] == [12, 14, 15, 16, 18, 20]
    plain = quick_settings("srresnet").models[0].model_copy(update={"name": "srgan"})  # the same seed
    train_run(run, quick_settings().model_copy(update={"models": (plain,)}), 0, CPU, resume=False)
    same = [json.loads(line) for line in (run / "train/srgan/log.jsonl").read_text().splitlines()]
    assert same[:6] == rows[:6]
    assert same[6]["loss"] != rows[6]["loss"]


def test_a_loss_that_is_not_finite_names_step_and_samples_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    samples = blob_samples(40, first_index=100)
    samples.hr[17] = math.inf
    trainer = Trainer(tiny_model("rcan").network, samples, LoopSettings(**QUICK), seed=2)
    batches = [trainer._draw(step, 0, samples).rows for step in range(1, 21)]
    first = next(step for step, rows in enumerate(batches, 1) if 17 in rows)
    assert first > 5  # a checkpoint is there
    named = [100 + row for row in batches[first - 1].tolist()]
    message = rf"step {first}: loss is not finite; the batch held samples \[{', '.join(map(str, named))}\]"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.run(ignore, folder=tmp_path)
    tensors, numbers = load_checkpoint(tmp_path / CHECKPOINT_NAME)
    assert numbers["step"] == (first - 1) // 5 * 5
    assert all(tensor.isfinite().all() for tensor in tensors["network"].values())


def test_a_damaged_checkpoint_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: damaged.*--fresh"):
        load_checkpoint(tmp_path / CHECKPOINT_NAME)


def test_a_run_leaves_all_it_promises_and_skips_what_is_done(blob_run: Callable[..., Path]) -> None:
    run, settings = blob_run(), quick_settings("fsrcnn", "rcan", "srgan")
    random_state = torch.get_rng_state()
    metrics = train_run(run, settings, 0, CPU, resume=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert json.loads((run / "train/metrics.json").read_text()) == metrics
    train = read_pairs(run / "data", "train")
    assert metrics["data_range"] == pytest.approx(np.median(train.hr.max((1, 2, 3))))
    assert metrics["seconds"] == pytest.approx(sum(model["seconds"] for model in metrics["models"].values()), abs=0.01)
    val = read_pairs(run / "data", "val")
    for name, model in metrics["models"].items():
        folder = run / "train" / name
        assert model["architecture"] == name
        assert [row["step"] for row in model["curve"]] == [5, 10, 15, 20]
        assert all(set(row) == {"step", "loss", "psnr_db", "ssim"} for row in model["curve"])
        loaded = load_model(folder, CPU)
        images = torch.from_numpy(loaded.super_resolve(val.lr, val.lr_noise, CPU))
        scores = psnr(images, torch.from_numpy(val.hr), metrics["data_range"])
        assert model["validation"]["psnr_db"] == pytest.approx(float(scores.mean()))
        if name == "srgan":
            assert model["best_step"] == 20
        else:
            best = max(model["curve"], key=lambda row: row["psnr_db"])
            assert model["best_step"] == best["step"]
            assert model["validation"]["psnr_db"] == pytest.approx(best["psnr_db"])
        assert f"{model['validation']['psnr_db']:.4g}" in (folder / "README.md").read_text(encoding="utf-8")
        assert list((folder / "tensorboard").glob("events*"))
    weights = {name: (run / "train" / name / "model.safetensors").stat().st_mtime_ns for name in metrics["models"]}
    assert train_run(run, settings, 0, CPU, resume=True) == metrics
    for name, time in weights.items():
        assert (run / "train" / name / "model.safetensors").stat().st_mtime_ns == time

    (run / "train/rcan/model.safetensors").unlink()
    again = train_run(run, settings, 0, CPU, resume=True)["models"]
    assert again["rcan"]["validation"] == metrics["models"]["rcan"]["validation"]
    assert again["srgan"] == metrics["models"]["srgan"]

    with pytest.raises(InputError, match=r"fsrcnn: holds a model of other settings, data or seed; use --fresh"):
        train_run(run, settings, 1, CPU, resume=True)
    train_run(run, quick_settings("fsrcnn"), 1, CPU, resume=False)
    assert (run / "train/fsrcnn/model.safetensors").stat().st_mtime_ns != weights["fsrcnn"]


def test_a_model_does_not_depend_on_which_others_are_trained(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    train_run(run, quick_settings("rcan", steps=5), 0, CPU, resume=False)
    alone = load_file(run / "train/rcan/model.safetensors")
    train_run(run, quick_settings("fsrcnn", "rcan", steps=5), 0, CPU, resume=False)
    for name, tensor in load_file(run / "train/rcan/model.safetensors").items():
        assert torch.equal(tensor, alone[name])


def test_the_seed_alone_decides_the_first_weights() -> None:
    settings = tiny_model("rcan").config.architecture_settings()
    one, two, other = (next(initial_network("rcan", settings, 2, 1, seed).parameters()) for seed in (4, 4, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        ([{"architecture": "rcn"}], {}, "unknown architecture 'rcn': did you mean 'rcan'"),
        ([{"architecture": "rcan", "size": "tiny"}], {}, "no size 'tiny'"),
        ([{"architecture": "rcan", "settings": {"group": 1}}], {}, "unknown key 'group'.*'groups'"),
        ([{"architecture": "bicubic"}], {}, r"models\.1: bicubic has nothing to train"),
        ([{"architecture": "fsrcnn"}, {"architecture": "fsrcnn"}], {}, r"models\.2: a second model.*'fsrcnn'"),
        ([{"architecture": "fsrcnn", "name": "../up"}], {}, r"models\.1\.name: '\.\./up' cannot"),
        ([{"architecture": "fsrcnn", "name": "bicubic"}], {}, r"models\.1\.name: 'bicubic' cannot"),
        ([{"architecture": "fsrcnn"}], {"crop_size": 17}, "crop_size: expected at most 16.*found 17"),
        (
            [{"architecture": "fsrcnn", "large_patch": {"steps": 1, "crop_size": 18, "learning_rate": 1e-4}}],
            {},
            r"models\.1: large_patch\.crop_size: expected at most 16.*found 18",
        ),
        ([{"architecture": "srgan"}], {"accumulate": 2}, r"models\.1: srgan learns against a discriminator"),
        (
            [{"architecture": "fsrcnn", "trainable": ["upsample"]}],
            {},
            r"models\.1\.trainable.*mean 'upsampling'",
        ),
        ([{"architecture": "fsrcnn", "warm_start": "nowhere"}], {}, "nowhere: not a model folder"),
        ([], {}, "at least one model"),
    ],
)
def test_wrong_settings_are_found_before_anything_is_trained(
    models: list[dict[str, Any]], changes: dict[str, Any], message: str, blob_run: Callable[..., Path]
) -> None:
    run = blob_run(train=2, val=1, test=1)
    good = {"architecture": "rcan", "settings": TINY["rcan"], "name": "good"}
    settings = TrainSettings.model_validate(QUICK | changes | {"models": [good, *models] if models else []})
    with pytest.raises(InputError, match=message):
        train_run(run, settings, 0, CPU, resume=False)
    assert not (run / "train").exists()


def test_a_few_seconds_of_training_beat_bicubic_by_4_db(blob_run: Callable[..., Path]) -> None:
    run = blob_run(train=64, val=12, lr_size=24)
    small = ModelSettings(architecture="rcan", settings={"groups": 1, "blocks": 2, "features": 16, "reduction": 4})
    settings = TrainSettings(models=(small,), steps=80, learning_rate=4e-3, crop_size=16, validation_interval=20)
    metrics = train_run(run, settings, 0, CPU, resume=False)
    assert metrics["models"]["rcan"]["validation"]["psnr_db"] > metrics["baselines"]["bicubic"]["psnr_db"] + 4
