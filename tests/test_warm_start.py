"""A network that starts from a trained one: what it takes over, what it computes at first, and that it pays."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simulate.errors import InputError
from simulate.settings import Settings
from sr.metrics import image_scores
from sr.model_folder import save_model
from sr.models import ARCHITECTURES
from sr.normalisation import fit_normalisation
from sr.samples import load_samples
from sr.schedule import LoopSettings
from sr.trained_model import TrainedModel, describe_model, interpolation_model
from sr.trainer import Trainer
from sr.training import initial_network
from sr.warm_start import WarmStart, warm_start

from .conftest import blob_pairs
from .test_trained_model import CPU, TINY
from .test_training import ignore

SIZES: dict[str, dict[str, Any]] = {
    **TINY,
    "srcnn": {"features": 4, "mapped_features": 3},
    "edsr": {"blocks": 1, "features": 6},
    "rdn": {"blocks": 1, "layers": 1, "growth": 4, "features": 4},
    "swinir": {"groups": 1, "layers": 2, "features": 6, "heads": 2, "window": 4},
    "fsrcnn_equivariant": {"fields": 2, "shrunk_fields": 1, "mapping_layers": 1},
    "fsrcnn_hybrid": {"fields": 2, "shrunk_fields": 1, "mapping_layers": 1},
    "flow": {"blocks": 1, "features": 6},
}
STACKED = ("rcan", "srresnet", "edsr", "rdn")
SCALE_BOUND = {
    **{name: {"upsampling.weight", "upsampling.bias"} for name in ("fsrcnn", "fsrcnn_equivariant", "fsrcnn_hybrid")},
    "flow": {"head.weight"},  # sees HR pixels as channels
}
IMAGES = torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(0))


def settings_of(architecture: str, **changes: Any) -> Settings:
    return ARCHITECTURES[architecture].settings.model_validate({**SIZES[architecture], **changes})


def saved(folder: Path, architecture: str, scale: int = 2, channels: int = 1, **changes: Any) -> nn.Module:
    """A network with weights and batch statistics that are all its own, as a model folder."""
    settings, pairs = settings_of(architecture, **changes), blob_pairs(2, scale=scale, lr_size=8)
    network = initial_network(architecture, settings, scale, channels, seed=7).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    config = describe_model(architecture, settings, pairs, fit_normalisation(pairs), data_sha256="ab" * 32)
    config = config.model_copy(update={"channels": channels})
    save_model(TrainedModel(architecture, network, config), folder, None)
    return network


def started(folder: Path, architecture: str, scale: int, **changes: Any) -> tuple[nn.Module, WarmStart]:
    settings = settings_of(architecture, **changes)
    network = initial_network(architecture, settings, scale, 1, seed=0).eval()
    return network, warm_start(network, folder, architecture, settings)


@pytest.mark.parametrize("scales", [(2, 4), (4, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("architecture", SIZES)
def test_features_are_copied_and_every_tensor_is_told_of(
    architecture: str, scales: tuple[int, int], tmp_path: Path
) -> None:
    old = saved(tmp_path / "old", architecture, scales[0]).state_dict()
    fresh = initial_network(architecture, settings_of(architecture), scales[1], 1, seed=0).state_dict()
    network, report = started(tmp_path / "old", architecture, scales[1])
    new = network.state_dict()
    assert sorted((*report.copied, *report.enlarging, *report.left)) == sorted(new)
    assert all(torch.equal(new[name], fresh[name]) for name in report.left)
    assert set(report.left) == SCALE_BOUND.get(architecture, set())
    for name in new:
        if not name.startswith("upsampling.") and name not in report.left:
            assert name in report.copied
            assert torch.equal(new[name], old[name])
    weights = (tmp_path / "old" / "model.safetensors").read_bytes()
    assert report.sha256 == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("architecture", SIZES)
def test_at_the_same_scale_it_starts_as_the_trained_network(architecture: str, tmp_path: Path) -> None:
    old = saved(tmp_path / "old", architecture)
    network, report = started(tmp_path / "old", architecture, 2)
    assert report.left == report.enlarging == ()
    assert torch.equal(network(IMAGES), old(IMAGES))


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize("architecture", STACKED)
def test_a_larger_network_starts_as_the_smaller_one_on_enlarged_features(
    architecture: str, scale: int, tmp_path: Path
) -> None:
    old = saved(tmp_path / "old", architecture)
    network, _ = started(tmp_path / "old", architecture, scale)
    features = torch.rand(2, settings_of(architecture).model_dump()["features"], 5, 6)
    *stage, last = old.get_submodule("upsampling").children()
    sharp = nn.Sequential(*stage)(features).detach().numpy()
    enlarged = torch.tensor(sharp.repeat(scale // 2, axis=2).repeat(scale // 2, axis=3))
    torch.testing.assert_close(network.get_submodule("upsampling")(features), last(enlarged), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "places"), [(4, [0, 0, 1, 1]), (3, [0, 1, 1]), (8, [0] * 4 + [1] * 4)])
def test_one_shuffle_that_enlarges_more_starts_with_the_nearest_pixels(
    scale: int, places: list[int], tmp_path: Path
) -> None:
    old = saved(tmp_path / "old", "swinir")
    network, _ = started(tmp_path / "old", "swinir", scale)
    result, expected = network(IMAGES).detach().numpy(), old(IMAGES).detach().numpy()
    rows, columns = (
        (2 * np.arange(count)[:, None] + np.array(places)).ravel() for count in (IMAGES.shape[2], IMAGES.shape[3])
    )
    np.testing.assert_allclose(result, expected[:, :, rows][..., columns], rtol=1e-5, atol=1e-5)


def test_what_has_another_shape_is_left_as_initialised(tmp_path: Path) -> None:
    saved(tmp_path / "old", "edsr", channels=3)
    network, report = started(tmp_path / "old", "edsr", 2)
    assert set(report.left) == {"head.weight", "upsampling.2.weight", "upsampling.2.bias"}
    assert str(report).startswith("from old (x2): 9 tensors copied, 0 enlarging; as initialised: head.weight, upsampl")
    assert report.summary()["as_initialised"] == list(report.left)
    fresh = initial_network("edsr", settings_of("edsr"), 2, 1, seed=0)
    assert torch.equal(network.get_parameter("head.weight"), fresh.get_parameter("head.weight"))


def test_the_generator_of_srgan_may_start_from_an_srresnet(tmp_path: Path) -> None:
    old = saved(tmp_path / "old", "srresnet")
    network, report = started(tmp_path / "old", "srgan", 2)
    assert report.left == ()
    assert torch.equal(network(IMAGES), old(IMAGES))
    with pytest.raises(InputError, match=r"old: its settings differ: expected blocks 2, found 1"):
        started(tmp_path / "old", "srgan", 2, blocks=2)
    other = saved(tmp_path / "other", "srgan", discriminator_features=4)
    assert torch.equal(started(tmp_path / "other", "srgan", 2, discriminator_features=8)[0](IMAGES), other(IMAGES))


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "old", "rcan")
    with pytest.raises(InputError, match=r"warm_start: .*old: expected edsr, found rcan"):
        started(tmp_path / "old", "edsr", 2)
    with pytest.raises(InputError, match=r"differ: expected groups 2, found 1; reduction 2, found 4$"):
        started(tmp_path / "old", "rcan", 2, groups=2, reduction=2)
    with pytest.raises(InputError, match=r"new: not a model folder"):
        started(tmp_path / "new", "rcan", 2)
    bicubic = interpolation_model("bicubic", blob_pairs(2))
    save_model(bicubic, tmp_path / "bicubic", None)
    settings = bicubic.config.architecture_settings()
    with pytest.raises(InputError, match=r"bicubic: nothing of it fits"):
        warm_start(bicubic.network, tmp_path / "bicubic", "bicubic", settings)


@pytest.mark.parametrize("architecture", ["rcan", "srresnet"])
def test_x4_learns_faster_from_x2(architecture: str, tmp_path: Path) -> None:
    settings = settings_of(architecture)

    def trained(network: nn.Module, scale: int, steps: int) -> tuple[TrainedModel, float]:
        """The model after `steps`, and its PSNR on blobs that it has not seen."""
        train, val = (blob_pairs(count, scale=scale, lr_size=12, seed=count) for count in (24, 8))
        normalisation = fit_normalisation(train)
        loop = LoopSettings(steps=steps, batch_size=4, crop_size=12, learning_rate=3e-3)
        Trainer(network, load_samples(train, normalisation, "hr", CPU), loop, 0).run(ignore)
        config = describe_model(architecture, settings, train, normalisation, data_sha256="ab" * 32)
        model = TrainedModel(architecture, network, config)
        scores = image_scores(model.super_resolve(val.lr, val.lr_noise, CPU), val, 1.0)
        return model, float(np.mean(scores["psnr_db"]))

    small, _ = trained(initial_network(architecture, settings, 2, 1, 0), 2, 50)
    save_model(small, tmp_path / "small", None)
    scratch = initial_network(architecture, settings, 4, 1, 0)
    warm, _ = started(tmp_path / "small", architecture, 4)
    assert trained(warm, 4, 10)[1] > trained(scratch, 4, 10)[1] + 1
