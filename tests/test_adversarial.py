"""The three games of generator and discriminator: their losses, who learns what, and several processes."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from simulate.errors import InputError
from sr.adversarial import AdversarialSettings, Adversary, discriminator_penalty, generator_penalty
from sr.models import resolve_settings
from sr.models.srgan import AdversaryKind, Discriminator
from sr.models.srresnet import FreezableBatchNorm2d
from sr.processes import mean_over_processes
from sr.samples import Batch

KINDS: tuple[AdversaryKind, ...] = get_args(AdversaryKind)
SIZE = 16


def some_batch(count: int = 8, seed: int = 0) -> Batch:
    """Stripes from top to bottom, of random phases, with noise."""
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    stripes = torch.sin(torch.arange(SIZE) * math.pi / 3 + phase).expand(count, 1, SIZE, SIZE)
    hr = stripes + 0.3 * torch.randn(stripes.shape, generator=generator)
    lr, zeros = nn.functional.avg_pool2d(hr, 2), torch.zeros(count, dtype=torch.int64)
    return Batch(lr, hr, torch.ones_like(hr, dtype=torch.bool), torch.ones_like(lr), zeros, zeros)


def wrong(batch: Batch) -> Tensor:
    """What a poor generator makes: stripes from side to side."""
    return batch.hr.transpose(2, 3).contiguous()


def small_discriminator(seed: int = 0) -> Discriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(SIZE, 1, features=4, dense=8)


def small_adversary(kind: AdversaryKind, autocast: bool = False) -> Adversary:
    return Adversary(small_discriminator(), AdversarialSettings(weight=0.5), steps=10, kind=kind, autocast=autocast)


# -- losses -----------------------------------------------------------------------------------------------------------


def closed_forms(kind: AdversaryKind, true: np.ndarray, false: np.ndarray) -> tuple[float, float]:
    """Losses of generator and discriminator as the papers write them, in NumPy."""

    def probability(logits: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-logits))

    if kind == "least-squares":
        return 0.5 * np.mean((false - 1) ** 2), 0.5 * np.mean((true - 1) ** 2) + 0.5 * np.mean(false**2)
    if kind == "standard":
        real, fake = probability(true), probability(false)
        return -np.mean(np.log(fake)), -np.mean(np.log(real)) - np.mean(np.log(1 - fake))
    real, fake = probability(true - false.mean()), probability(false - true.mean())
    generator = -np.mean(np.log(1 - real)) - np.mean(np.log(fake))
    return generator, -np.mean(np.log(real)) - np.mean(np.log(1 - fake))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_papers(kind: AdversaryKind) -> None:
    true, false = np.array([[2.0], [-0.5], [0.3]]), np.array([[-1.0], [0.7], [0.1]])
    generator, discriminator = closed_forms(kind, true, false)
    assert generator_penalty(kind, torch.tensor(false), torch.tensor(true)).item() == pytest.approx(generator)
    assert discriminator_penalty(kind, torch.tensor(true), torch.tensor(false)).item() == pytest.approx(discriminator)


@pytest.mark.parametrize(("kind", "undecided"), [("standard", math.log(2)), ("relativistic", 2 * math.log(2))])
def test_a_discriminator_that_knows_nothing_gives_the_loss_of_a_coin(kind: AdversaryKind, undecided: float) -> None:
    logits = torch.full((4, 1), 0.0)
    assert generator_penalty(kind, logits, logits).item() == pytest.approx(undecided)
    assert discriminator_penalty(kind, logits, logits).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("kind", KINDS)
def test_generator_and_discriminator_pull_logits_in_opposite_directions(kind: AdversaryKind) -> None:
    true, false = torch.zeros(4, 1, requires_grad=True), torch.zeros(4, 1, requires_grad=True)
    (up,) = torch.autograd.grad(generator_penalty(kind, false, true), false)
    assert (up < 0).all()  # a step down the gradient raises the logits of generated images
    to_true, to_false = torch.autograd.grad(discriminator_penalty(kind, true, false), (true, false))
    assert (to_true <= 0).all()
    assert (to_false >= 0).all()
    assert (to_true - to_false < 0).all()


def test_only_relative_logits_count_in_the_relativistic_loss() -> None:
    true, false = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [-1.0]])
    for shift in (100.0, -100.0):
        assert generator_penalty("relativistic", false + shift, true + shift).item() == pytest.approx(
            generator_penalty("relativistic", false, true).item(), rel=1e-5
        )
    with pytest.raises(ValueError, match="true images"):
        generator_penalty("relativistic", false)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_large_logits_are_finite(kind: AdversaryKind) -> None:
    true, false = torch.tensor([[1e4]]), torch.tensor([[-1e4]])
    assert generator_penalty(kind, false, true).isfinite()
    assert discriminator_penalty(kind, false, true).isfinite()


# -- adversary --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_learns_to_tell_wrong_images_from_true(kind: AdversaryKind) -> None:
    adversary = small_adversary(kind)
    losses = [
        adversary.learn(wrong(batch), batch, learning_rate=1e-2).item()
        for batch in (some_batch(seed=seed) for seed in range(40))
    ]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    unseen = some_batch(seed=99)
    with torch.no_grad():
        true, false = adversary.discriminator(unseen.hr), adversary.discriminator(wrong(unseen))
    assert ((true > false.mean()) & (false < true.mean())).float().mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_s_loss_favours_true_images_and_teaches_the_generator_alone(
    kind: AdversaryKind,
) -> None:
    adversary = small_adversary(kind)
    for seed in range(20):
        batch = some_batch(seed=seed)
        adversary.learn(wrong(batch), batch, learning_rate=1e-2)
    weights = {name: parameter.clone() for name, parameter in adversary.discriminator.named_parameters()}
    for parameter in adversary.parameters:
        parameter.grad = None
    batch = some_batch(seed=99)
    output = wrong(batch).requires_grad_(True)
    loss = adversary.generator_loss(output, batch)
    loss.backward()
    assert output.grad is not None
    assert all(parameter.grad is None for parameter in adversary.parameters)
    assert adversary.generator_loss(batch.hr, batch) < loss
    with torch.no_grad():
        downhill = output - 1e-2 * output.grad / output.grad.norm()
    assert adversary.generator_loss(downhill, batch) < loss
    for name, parameter in adversary.discriminator.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_the_weight_multiplies_and_the_warm_start_is_a_share_of_the_steps() -> None:
    batch = some_batch()
    losses = [
        Adversary(small_discriminator(), settings, steps=30).generator_loss(wrong(batch), batch).item()
        for settings in (AdversarialSettings(weight=1), AdversarialSettings(weight=0.02))
    ]
    assert losses[1] == pytest.approx(0.02 * losses[0])
    settings = AdversarialSettings(warm_start_fraction=0.2)
    assert Adversary(small_discriminator(), settings, steps=30).warm_start_steps == 6


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_are_not_real_are_not_seen(kind: AdversaryKind) -> None:
    batch = some_batch()
    batch.mask[:, :, :5] = False
    results = []
    generated = wrong(batch)
    for value in (0.0, math.nan):
        output = generated.masked_fill(~batch.mask, value).requires_grad_(True)
        batch.hr[~batch.mask] = value
        adversary = small_adversary(kind)
        loss = adversary.generator_loss(output, batch)
        loss.backward()
        assert output.grad is not None
        results.append((loss.item(), adversary.learn(output, batch, 1e-3).item(), output.grad[~batch.mask]))
    assert results[0][:2] == results[1][:2]
    assert (results[1][2] == 0).all()


def test_bfloat16_changes_rounding_alone_and_its_losses_are_float32() -> None:
    batch = some_batch()
    exact, rounded = (small_adversary("relativistic", autocast=autocast) for autocast in (False, True))
    losses = [adversary.generator_loss(wrong(batch), batch) for adversary in (exact, rounded)]
    assert losses[1].dtype == torch.float32
    assert losses[1].item() != losses[0].item()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)
    assert rounded.learn(wrong(batch), batch, 1e-3).dtype == torch.float32


def test_a_restored_adversary_goes_on_to_the_same_bits() -> None:
    batch = some_batch()
    straight = small_adversary("relativistic")
    straight.learn(wrong(batch), batch, 1e-3)
    kept = {
        group: {name: one.clone() for name, one in members.items()} for group, members in straight.tensors().items()
    }
    resumed = Adversary(small_discriminator(seed=1), AdversarialSettings(weight=0.5), steps=10, kind="relativistic")
    resumed.restore(kept)
    for adversary in (straight, resumed):
        adversary.learn(wrong(batch), batch, 1e-3)
    for name, tensor in straight.discriminator.state_dict().items():
        assert torch.equal(tensor, resumed.discriminator.state_dict()[name]), name


def test_the_discriminator_s_batch_norm_is_the_one_that_processes_share() -> None:
    kinds = {type(module) for module in small_discriminator().modules() if isinstance(module, nn.BatchNorm2d)}
    assert kinds == {FreezableBatchNorm2d}


def test_srgan_takes_the_kind_as_a_setting_of_the_model() -> None:
    assert resolve_settings("srgan").model_dump()["adversary"] == "standard"
    settings = resolve_settings("srgan", "full", {"adversary": "relativistic"})
    assert settings.model_dump()["adversary"] == "relativistic"
    with pytest.raises(InputError, match="'adversary': expected 'standard', 'relativistic' or 'least-squares'"):
        resolve_settings("srgan", "full", {"adversary": "wasserstein"})


# -- several processes ------------------------------------------------------------------------------------------------


class Judge(nn.Module):
    """A discriminator without batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(SIZE, SIZE, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh((images * self.weight).sum((2, 3)))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        assert parameter.grad is not None
        distributed.all_reduce(parameter.grad)
        parameter.grad /= distributed.get_world_size()


def fight(batch: Batch, synchronise: Callable[[Iterable[Tensor]], None]) -> dict[str, Tensor]:
    """Gradient of a generator of one parameter, and the discriminator after one step of gradient descent."""
    adversary = Adversary(Judge(), AdversarialSettings(weight=1), 1, "relativistic", synchronise=synchronise)
    adversary.optimiser = torch.optim.SGD(adversary.parameters, lr=1)
    gain = nn.Parameter(torch.tensor(0.7))
    output = gain * wrong(batch)
    adversary.generator_loss(output, batch).backward()
    loss = adversary.learn(output, batch, learning_rate=1.0)
    assert gain.grad is not None
    return {"gain": gain.grad, "weight": adversary.discriminator.state_dict()["weight"], "loss": loss}


def half(rank: int, folder: str) -> None:
    """One of two processes: its half of the batch."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows, whole = slice(4 * rank, 4 * rank + 4), some_batch()
    batch = Batch(*(getattr(whole, name)[rows] for name in ("lr", "hr", "mask", "noise", "rows", "symmetry")))
    found = fight(batch, synchronise=average_gradients)
    found["mean"] = mean_over_processes(torch.tensor([float(rank), 5.0]))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_fight_as_one_with_both_halves_of_the_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(half, (str(tmp_path),), nprocs=2)
    expected = fight(some_batch(), synchronise=lambda _: None)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for one in found:
        torch.testing.assert_close(one["weight"], expected["weight"])
        assert one["mean"].tolist() == [0.5, 5.0]
    for name in ("gain", "loss"):  # a process's gradients are averaged later, by the trainer
        torch.testing.assert_close((found[0][name] + found[1][name]) / 2, expected[name])
    assert found[0]["gain"] != found[1]["gain"]
    assert torch.equal(mean_over_processes(expected["loss"]), expected["loss"])
