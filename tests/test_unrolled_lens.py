"""The unrolled network that starts from a fitted lens: its first guesses, whole and cropped, and how it is trained."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simulate.errors import InputError
from simulate.shards import manifest_sha256, read_pairs
from sr.degradation import Degradation
from sr.first_guesses import FIRST_GUESSES_NAME
from sr.losses import loss_context
from sr.model_folder import WEIGHTS_NAME, load_model
from sr.models.d4 import ORDER, act
from sr.models.unrolled_lens import UnrolledLens, UnrolledLensSettings
from sr.normalisation import fit_normalisation
from sr.operators import forward_operator
from sr.plan import ModelSettings, TrainSettings, plan_models
from sr.samples import draw_batch, load_samples
from sr.schedule import LoopSettings
from sr.trainer import OutOfTimeError, Trainer
from sr.training import initial_network, train_run

from .conftest import blob_pairs
from .test_lens_encoder import LENS, SOURCE, noisy_lens
from .test_lens_encoder import numbers as numbers_of

CPU = torch.device("cpu")
ENCODER = {"features": 4, "hidden": 8, "refinements": 1, "iterations": 2}
TINY = {"steps": 2, "blocks": 1, "fields": 1, "encoder": ENCODER}


def tiny_network(**changes: Any) -> UnrolledLens:
    made = initial_network("unrolled_lens", UnrolledLensSettings.model_validate({**TINY, **changes}), 2, 1, 0)
    assert isinstance(made, UnrolledLens)
    return made


# -- first guesses ----------------------------------------------------------------------------------------------------


def test_it_starts_from_the_lens_and_ends_nearer_to_the_truth_than_from_an_interpolated_image() -> None:
    hr, lr, told = noisy_lens()
    network = tiny_network().eval()
    truth = numbers_of(LENS | SOURCE)
    network.encoder.encode = lambda contrast: truth.expand(len(contrast), -1)  # type: ignore[method-assign]
    with torch.inference_mode():
        guess = network.guess(lr, told)
        assert torch.equal(guess, network.encoder(lr, told))
        found = network(lr, told)
        assert torch.equal(found, network(lr, told, guess))
        interpolated = network(lr, told, super(UnrolledLens, network).guess(lr, told))

    def error(image: Tensor) -> float:
        return float((image - hr).square().mean().sqrt())

    assert error(found) < 0.5 * error(interpolated)


def test_it_turns_with_the_image() -> None:
    _, lr, told = noisy_lens()
    network = tiny_network(encoder={**ENCODER, "refinements": 0}).eval()
    with torch.inference_mode():
        answer = network(lr, told)
        for element in range(ORDER):
            turned = network(act(element, lr).contiguous(), told.turned(element))
            torch.testing.assert_close(turned, act(element, answer), rtol=0, atol=1e-4 * float(answer.abs().max()))


def test_crops_have_the_crop_of_the_first_guess() -> None:
    pairs = blob_pairs(3)
    samples = load_samples(pairs, fit_normalisation(pairs), "hr", CPU)
    batch = draw_batch(replace(samples, first_guess=samples.hr), 8, 6, True, torch.Generator().manual_seed(0))
    assert batch.first_guess is not None
    assert torch.equal(batch.first_guess, batch.hr)


def test_the_trainer_makes_first_guesses_of_whole_images_once() -> None:
    pairs = blob_pairs(20)
    normalisation = fit_normalisation(pairs)
    samples = load_samples(pairs, normalisation, "hr", CPU)
    context = loss_context({"l1": 1.0}, pairs, normalisation, "hr", CPU, knows_degradation=True)
    network = tiny_network()
    expected = network.guess(samples.lr, Degradation(samples.noise, forward_operator(pairs).float()))
    notes: list[str] = []
    told: list[tuple[Any, ...]] = []
    forward = network.forward
    network.forward = lambda *inputs: told.append(inputs) or forward(*inputs)  # type: ignore[assignment, func-returns-value]
    trainer = Trainer(network, samples, LoopSettings(steps=3, batch_size=2, crop_size=8), 0, context=context)
    trainer.run(lambda _, note="": notes.append(note))
    made = trainer.samples.at(1).first_guess
    assert made is not None
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert "first guesses, 16 of 20" in notes
    assert [inputs[2].shape for inputs in told] == [(2, 1, 16, 16)] * 3


# -- as a model of the pipeline ---------------------------------------------------------------------------------------


def models(**changes: Any) -> tuple[ModelSettings, ...]:
    lens = ModelSettings(architecture="lens_encoder", name="mine", settings=ENCODER)
    steps = {"architecture": "unrolled_lens", "settings": TINY, "encoder": "mine", **changes}
    return lens, ModelSettings.model_validate(steps)


def settings(*chosen: ModelSettings, **more: Any) -> TrainSettings:
    return TrainSettings(models=chosen, steps=2, batch_size=2, crop_size=8, validation_interval=2, **more)


def test_it_is_trained_after_its_encoder_which_it_keeps(blob_run: Callable[..., Path]) -> None:
    run = blob_run(train=6, val=2, test=1)
    lens, steps = models()
    with pytest.raises(InputError, match=r"encoder: unrolled_lens starts from mine, which is not in .*train; list it"):
        train_run(run, settings(steps), 0, CPU, resume=True)
    assert not (run / "train" / "unrolled_lens").exists()
    train_run(run, settings(lens, steps), 0, CPU, resume=True)
    encoder, whole = (load_file(run / "train" / name / WEIGHTS_NAME) for name in ("mine", "unrolled_lens"))
    for name, tensor in encoder.items():
        if not name.startswith("degradation."):
            assert torch.equal(whole[f"encoder.{name}"], tensor), name
    model = load_model(run / "train" / "unrolled_lens", CPU)
    assert model.config.training["encoder"]["model"] == "mine"
    assert model.config.training["crop_size"] == 8
    assert model.config.data_sha256 == manifest_sha256(run / "data")
    val = read_pairs(run / "data", "val")
    assert np.isfinite(model.super_resolve_pairs(val, CPU)).all()

    # alone it is found to be finished, and with another encoder to be another model
    train_run(run, settings(steps), 0, CPU, resume=True)
    train_run(run, settings(lens).model_copy(update={"steps": 3}), 0, CPU, resume=False)
    with pytest.raises(InputError, match="holds a model of other settings, data or seed"):
        train_run(run, settings(steps), 0, CPU, resume=True)
    trained = ModelSettings(architecture="srcnn")
    train_run(run, settings(trained), 0, CPU, resume=True)
    for changes, message in (
        ({"encoder": "srcnn"}, "srcnn: expected a model of architecture lens_encoder, found srcnn"),
        ({"settings": {**TINY, "encoder": {**ENCODER, "features": 5}}}, "mine: expected the settings features=5"),
    ):
        with pytest.raises(InputError, match=message):
            train_run(run, settings(models(**changes)[1]), 0, CPU, resume=False)
    manifest = run / "data" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(InputError, match="mine: expected the data"):
        train_run(run, settings(steps), 0, CPU, resume=False)


def test_first_guesses_stop_in_time_and_go_on_to_the_same_bits(blob_run: Callable[..., Path], tmp_path: Path) -> None:
    run = blob_run(train=40, val=2, test=1)
    lens, steps = models()
    train_run(run, settings(lens, steps), 0, CPU, resume=True)
    again = tmp_path / "again"
    for part in ("data", "train/mine"):
        shutil.copytree(run / part, again / part)
    folder, made = again / "train" / "unrolled_lens", []
    guess = UnrolledLens.guess
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnrolledLens, "guess", lambda self, lr, told: made.append(len(lr)) or guess(self, lr, told))
        for expected in ([16], [16]):
            clock = iter([0.0, math.inf])  # time for one batch of images
            patch.setattr("sr.first_guesses.time", SimpleNamespace(monotonic=partial(next, clock)))
            made.clear()
            with pytest.raises(OutOfTimeError, match="before all first guesses were made"):
                train_run(again, settings(steps), 0, CPU, resume=True, deadline=time.monotonic() + 1e4)
            assert made == expected
    assert (folder / FIRST_GUESSES_NAME).is_file()
    train_run(again, settings(steps), 0, CPU, resume=True)
    assert not (folder / FIRST_GUESSES_NAME).exists()
    first, second = (load_file(one / "train/unrolled_lens" / WEIGHTS_NAME) for one in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_encoder_comes_before_the_network_that_starts_from_it() -> None:
    pairs, (lens, steps) = blob_pairs(4), models()
    with pytest.raises(InputError, match=r"models\.0\.encoder: unrolled_lens starts from mine; list that before it"):
        plan_models(settings(steps, lens), pairs, pairs, "ab", 0)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"encoder": None},
            {},
            r"train\.models\.1\.encoder: expected the name of a model",
        ),
        ({"architecture": "unrolled", "settings": {}}, {}, r"\.encoder: unrolled starts from no lens; leave it out"),
        ({}, {"data": "on-the-fly"}, r"train\.models\.1: unrolled_lens needs data: stored"),
        ({"settings": {**TINY, "scales": [2, 4]}}, {}, "unrolled_lens serves that of its encoder alone"),
        (
            {"trainable": ["encoder.body"]},
            {},
            "the encoder of unrolled_lens learns nothing here; train mine",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], more: dict[str, Any], message: str) -> None:
    pairs = blob_pairs(4)
    with pytest.raises(InputError, match=message):
        plan_models(settings(*models(**changes), **more), pairs, pairs, "ab", 0)
