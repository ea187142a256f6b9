"""The unrolled network that starts from a fitted lens: its first guesses, whole and cropped, and how it is trained."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simulate.errors import InputError
from simulate.shards import manifest_sha256, read_pairs
from sr.degradation import Degradation
from sr.losses import loss_context
from sr.model_folder import WEIGHTS_NAME, load_model
from sr.models.d4 import ORDER, act
from sr.models.unrolled_lens import UnrolledLens, UnrolledLensSettings
from sr.normalisation import fit_normalisation
from sr.operators import forward_operator
from sr.plan import ModelSettings, TrainSettings, plan_models
from sr.samples import draw_batch, load_samples
from sr.schedule import LoopSettings
from sr.trainer import Trainer
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
    with pytest.raises(InputError, match=r"unrolled_lens starts from the lens_encoder 'mine', which is not in .*train"):
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

    other = ModelSettings(
        architecture="unrolled_lens", encoder="mine", settings={**TINY, "encoder": {**ENCODER, "features": 5}}
    )
    with pytest.raises(InputError, match=r"mine: expected a lens_encoder, x2, of the settings features=5"):
        train_run(run, settings(other), 0, CPU, resume=False)


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
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], more: dict[str, Any], message: str) -> None:
    pairs = blob_pairs(4)
    with pytest.raises(InputError, match=message):
        plan_models(settings(*models(**changes), **more), pairs, pairs, "ab", 0)
