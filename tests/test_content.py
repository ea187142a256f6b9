"""The auto-encoder of the content loss: what it learns, what its features mean, and what is kept of it."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from simulate.errors import InputError
from sr.content import (
    ENCODER_NAME,
    AdversarialAutoEncoder,
    ContentSettings,
    load_or_train_content_encoder,
    train_content_encoder,
)
from sr.losses import LossContext, build_loss
from sr.normalisation import fit_normalisation
from sr.samples import Samples, draw_batch, load_samples

from .conftest import blob_pairs

TINY = ContentSettings(features=8, latent=2, steps=200, batch_size=16, crop_size=32, learning_rate=3e-3)
BRIEF = TINY.model_copy(update={"steps": 3})


def ignore(steps: int, note: str = "") -> None:
    pass


def blob_samples(count: int = 64, seed: int = 0) -> Samples:
    pairs = blob_pairs(count, seed=seed)
    return load_samples(pairs, fit_normalisation(pairs), "hr", torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder() -> AdversarialAutoEncoder:
    return train_content_encoder(blob_samples(), TINY, 0, ignore)


@pytest.fixture(scope="module")
def unseen() -> Tensor:
    return blob_samples(48, seed=1).hr


def distance_from_prior(encoder: AdversarialAutoEncoder, images: Tensor) -> float:
    """Sliced Wasserstein distance of the codes, with their noise, from draws of a standard normal distribution."""
    generator = torch.Generator().manual_seed(0)
    codes = encoder.encode(images).detach().permute(0, 2, 3, 1).flatten(0, 2)
    codes = codes + TINY.code_noise * torch.randn(codes.shape, generator=generator)
    angle = torch.arange(16) * math.pi / 16
    directions = torch.stack([angle.cos(), angle.sin()])
    along, prior = ((one @ directions).sort(0).values for one in (codes, torch.randn(codes.shape, generator=generator)))
    return float((along - prior).abs().mean())


def feature_distance(encoder: AdversarialAutoEncoder, found: Tensor, wanted: Tensor) -> float:
    pairs = zip(encoder.features(found), encoder.features(wanted), strict=True)
    return float(torch.stack([((one - other) ** 2).mean() for one, other in pairs]).mean())


def untrained(settings: ContentSettings = TINY, channels: int = 1) -> AdversarialAutoEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AdversarialAutoEncoder(settings, channels)


def same(first: AdversarialAutoEncoder, second: AdversarialAutoEncoder) -> bool:
    tensors = second.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in first.state_dict().items())


# -- what it learns ---------------------------------------------------------------------------------------------------


def test_it_reconstructs_images_it_has_not_seen(encoder: AdversarialAutoEncoder, unseen: Tensor) -> None:
    mean = blob_samples().hr.mean(0)
    error = ((encoder.reconstruct(unseen) - unseen) ** 2).mean()
    assert error < 0.35 * ((mean - unseen) ** 2).mean()
    assert error < 0.35 * ((untrained().reconstruct(unseen) - unseen) ** 2).mean()


def test_the_discriminator_moves_codes_to_the_prior(encoder: AdversarialAutoEncoder, unseen: Tensor) -> None:
    without = train_content_encoder(blob_samples(), TINY.model_copy(update={"prior_weight": 0.0}), 0, ignore)
    found = distance_from_prior(encoder, unseen)
    assert found < 0.8 * distance_from_prior(untrained(), unseen)
    assert found < 0.3 * distance_from_prior(without, unseen)  # it runs away from the noise


def test_features_have_a_root_mean_square_of_one(encoder: AdversarialAutoEncoder, unseen: Tensor) -> None:
    for features in encoder.features(unseen):
        assert features.square().mean().sqrt().item() == pytest.approx(1, rel=0.25)


def test_what_is_not_real_is_not_learned() -> None:
    samples = blob_samples()
    samples.mask[:, :, :, 20:] = False
    encoders = []
    for value in (0.0, math.nan):
        samples.hr[~samples.mask] = value
        encoders.append(train_content_encoder(samples, BRIEF, 0, ignore))
    assert same(*encoders)


def test_a_training_that_becomes_nan_is_an_error() -> None:
    samples = blob_samples()
    samples.hr[:] = math.nan
    with pytest.raises(FloatingPointError, match="'content' became NaN"):
        train_content_encoder(samples, BRIEF, 0, ignore)


# -- what its features mean -------------------------------------------------------------------------------------------


def test_noise_teaches_features_to_overlook_a_pedestal(unseen: Tensor) -> None:
    blurred = torch.tensor(gaussian_filter(unseen.numpy(), (0, 0, 1, 1)))
    pedestal_over_blur = []
    for sigma in (0.3, 0.0):
        samples = blob_samples()
        samples = replace(samples, noise=torch.full_like(samples.noise, sigma))
        encoder = train_content_encoder(samples, TINY.model_copy(update={"steps": 100}), 0, ignore)
        pedestal = feature_distance(encoder, unseen + 0.05, unseen)
        pedestal_over_blur.append(pedestal / feature_distance(encoder, blurred, unseen))
    assert pedestal_over_blur[0] < 0.5 * pedestal_over_blur[1]


def test_the_distance_of_features_grows_with_blur(encoder: AdversarialAutoEncoder, unseen: Tensor) -> None:
    blurred = [torch.tensor(gaussian_filter(unseen.numpy(), (0, 0, sigma, sigma))) for sigma in (0, 0.5, 1, 2, 4)]
    distances = [feature_distance(encoder, one, unseen) for one in blurred]
    assert distances[0] == 0
    assert all(less < more for less, more in pairwise(distances))


def test_as_a_loss_it_leads_an_image_to_the_truth(encoder: AdversarialAutoEncoder) -> None:
    batch = draw_batch(blob_samples(8, seed=1), 8, None, True, torch.Generator().manual_seed(0))
    loss = build_loss({"content": 1.0}, LossContext(content=encoder))
    image = torch.nn.functional.avg_pool2d(batch.hr, 5, 1, 2).requires_grad_(True)
    errors, optimiser = [], torch.optim.Adam([image], lr=2e-2)
    for _ in range(60):
        errors.append(((image - batch.hr) ** 2).mean().item())
        optimiser.zero_grad()
        loss(image, batch)["content"].backward()
        optimiser.step()
    assert errors[-1] < 0.5 * errors[0]
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (37, 25)])
def test_images_of_any_size(height: int, width: int) -> None:
    network = untrained(channels=2)
    image = torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(0))
    assert network.reconstruct(image).shape == image.shape
    assert network.encode(image).shape == (3, 2, -(-height // 8), -(-width // 8))
    expected = [(3, 8 * 2**s, -(-height // 2 ** (s + 1)), -(-width // 2 ** (s + 1))) for s in range(3)]
    assert [features.shape for features in network.features(image)] == expected


# -- how it is trained and kept ---------------------------------------------------------------------------------------


def test_it_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    encoders = [train_content_encoder(blob_samples(), BRIEF, seed, ignore) for seed in (4, 4, 5)]
    assert same(encoders[0], encoders[1])
    assert not same(encoders[0], encoders[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_it_learns_from_samples_that_change_step_by_step() -> None:
    samples, asked, told = blob_samples(), [], []

    class Source:
        device = samples.device

        def start(self, step: int, tell: Callable[[str], None]) -> None:
            asked.append(("start", step))
            tell("simulates")

        def at(self, step: int) -> Samples:
            asked.append(("at", step))
            return replace(samples, hr=samples.hr * step)

    changing = train_content_encoder(Source(), BRIEF, 0, lambda steps, note="": told.append((steps, note)))
    assert told == [(0, "simulates"), (1, ""), (1, ""), (1, "")]
    assert asked[0] == ("start", 1)
    steps = [step for name, step in asked if name == "at"]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2, 3}
    assert not same(changing, train_content_encoder(samples, BRIEF, 0, ignore))


def test_a_run_has_one_encoder_until_something_changes(tmp_path: Path) -> None:
    steps: list[int] = []

    def get(settings: ContentSettings = BRIEF, seed: int = 0, data: str = "a") -> AdversarialAutoEncoder:
        return load_or_train_content_encoder(
            tmp_path, blob_samples(), settings, seed, lambda one, note="": steps.append(one), data
        )

    first = get()
    assert sum(steps) == BRIEF.steps
    again = get()
    assert sum(steps) == BRIEF.steps
    assert same(first, again)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    changes: list[dict[str, Any]] = [{"seed": 1}, {"data": "b"}, {"settings": BRIEF.model_copy(update={"features": 4})}]
    for count, change in enumerate(changes, 2):
        get(**change)
        get(**change)
        assert sum(steps) == count * BRIEF.steps
    assert same(first, get())
    assert [path.name for path in tmp_path.iterdir()] == [ENCODER_NAME]


def test_a_damaged_encoder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / ENCODER_NAME).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"encoder\.safetensors: damaged"):
        load_or_train_content_encoder(tmp_path, blob_samples(2), BRIEF, 0, ignore, "a")
