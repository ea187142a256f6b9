"""Every network of the registry against the papers' counts, its contract and what training must do to it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from simulate.errors import InputError
from sr.losses import pixel_loss
from sr.models import (
    ARCHITECTURES,
    build_network,
    find_architecture,
    freeze_features,
    parameter_count,
    resolve_settings,
    unfreeze,
)
from sr.models.fsrcnn import Fsrcnn
from sr.models.rcan import RcanSettings
from sr.models.srgan import Discriminator

from .conftest import blob_pairs

TRAINABLE = [name for name, architecture in ARCHITECTURES.items() if architecture.trainable]


def small_network(name: str, scale: int = 2, channels: int = 1, seed: int = 0) -> nn.Module:
    """The smallest size of a network, its weights drawn from `seed` without touching the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = list(ARCHITECTURES[name].sizes)[-1]
        return build_network(name, resolve_settings(name, size), scale, channels)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train(network: nn.Module, lr: torch.Tensor, hr: torch.Tensor, steps: int) -> list[float]:
    loss_function = pixel_loss("mse")
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    network.train()
    for _ in range(steps):
        loss = loss_function(network(lr), hr, None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# -- registry ---------------------------------------------------------------------------------------------------------


def test_registry_has_the_architectures_in_order() -> None:
    assert list(ARCHITECTURES) == ["bilinear", "bicubic", "fsrcnn", "srresnet", "rcan", "srgan"]
    assert [name for name, architecture in ARCHITECTURES.items() if architecture.adversarial] == ["srgan"]
    assert TRAINABLE == ["fsrcnn", "srresnet", "rcan", "srgan"]


@pytest.mark.parametrize(
    ("name", "scale", "channels", "count"),
    [
        ("fsrcnn", 2, 1, 12_809),
        ("fsrcnn", 4, 1, 12_809),
        ("srresnet", 2, 1, 1_381_011),
        ("srresnet", 4, 1, 1_528_724),
        ("srgan", 4, 1, 1_528_724),
        # The published code of RCAN counts 24 values more: its fixed RGB mean shift, which is not trained.
        ("rcan", 2, 3, 15_444_643),
        ("rcan", 4, 3, 15_592_355),
        ("rcan", 4, 1, 15_590_049),
        ("bicubic", 2, 1, 0),
    ],
)
def test_full_size_has_the_published_parameter_count(name: str, scale: int, channels: int, count: int) -> None:
    with torch.device("meta"):
        network = build_network(name, resolve_settings(name, "full"), scale, channels)
    assert parameter_count(network) == count


def test_srresnet_rgb_count_differs_in_first_and_last_layer_alone() -> None:
    with torch.device("meta"):
        network = build_network("srresnet", resolve_settings("srresnet", "full"), 4, 3)
    first, last = 2 * 64 * 81, 2 * (64 * 81 + 1)
    assert parameter_count(network) == 1_528_724 + first + last


def test_unknown_name_size_key_and_scale_are_input_errors() -> None:
    with pytest.raises(InputError, match="did you mean 'srresnet'"):
        find_architecture("srresnett")
    with pytest.raises(InputError, match="no size 'tiny'; its sizes are full, small"):
        resolve_settings("rcan", "tiny")
    with pytest.raises(InputError, match=r"settings of rcan: unknown key 'block' \(did you mean 'blocks'\?\)"):
        resolve_settings("rcan", "small", {"block": 3})
    with pytest.raises(InputError, match="greater than 0"):
        resolve_settings("fsrcnn", "small", {"features": 0})
    with pytest.raises(InputError, match=r"features \(30\) must be a multiple of reduction \(8\)"):
        resolve_settings("rcan", "small", {"features": 30})
    with pytest.raises(InputError, match="the scale is 5, expected one of 2, 3, 4, 8"):
        build_network("rcan", resolve_settings("rcan"), 5)
    with pytest.raises(TypeError, match="FsrcnnSettings"):
        build_network("fsrcnn", RcanSettings(), 2)


def test_overrides_change_one_setting_and_keep_the_rest() -> None:
    assert resolve_settings("rcan", "full", {"blocks": 2}) == RcanSettings(blocks=2)


# -- contract of all networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_is_exactly_scale_times_the_input(name: str, scale: int, channels: int) -> None:
    network = small_network(name, scale, channels).eval()
    output = network(images(2, channels, 7, 10))
    assert output.shape == (2, channels, 7 * scale, 10 * scale)
    assert output.dtype == torch.float32
    assert output.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_output_is_float32_under_bfloat16_autocast(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert small_network(name).eval()(images(1, 1, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_evaluation_is_deterministic_and_images_do_not_mix(name: str) -> None:
    network = small_network(name).eval()
    batch = images(3, 1, 9, 9)
    with torch.inference_mode():
        together = network(batch)
        assert torch.equal(together, network(batch))
        alone = network(batch[1:2])
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_survive_safetensors(name: str, tmp_path: Path) -> None:
    network, other = small_network(name, seed=1), small_network(name, seed=2)
    network(images(2, 1, 8, 8))  # moves the running statistics, which must be kept too
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    lr = images(1, 1, 8, 8, seed=3)
    with torch.inference_mode():
        assert torch.equal(network.eval()(lr), other.eval()(lr))


@pytest.mark.parametrize("name", TRAINABLE)
def test_network_overfits_one_small_batch(name: str) -> None:
    pairs = blob_pairs(2, lr_size=8)
    lr, hr = torch.from_numpy(pairs.lr) / 4, torch.from_numpy(pairs.hr)
    losses = train(small_network(name), lr, hr, steps=30)
    assert losses[-1] < 0.1 * float(hr.square().mean())  # an image of zeros scores 1


@pytest.mark.parametrize("name", TRAINABLE)
def test_frozen_features_do_not_move_and_upsampling_does(name: str) -> None:
    network = small_network(name)
    lr, hr = images(2, 1, 12, 12), images(2, 1, 24, 24, seed=1)
    freeze_features(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    train(network, lr, hr, steps=2)  # calls network.train(), as trainers do
    for key, value in network.state_dict().items():
        if key.startswith("upsampling."):
            assert not torch.equal(value, before[key]), key
        else:  # parameters and running statistics
            assert torch.equal(value, before[key]), key
    assert all(
        (parameter.grad is not None) == key.startswith("upsampling.") for key, parameter in network.named_parameters()
    )

    unfreeze(network)
    train(network, lr, hr, steps=1)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(network.state_dict())


def test_frozen_network_features_are_those_of_evaluation_mode() -> None:
    network = small_network("srresnet")
    train(network, images(4, 1, 12, 12), images(4, 1, 24, 24, seed=1), steps=2)
    lr = images(2, 1, 12, 12, seed=5)
    network.eval()
    expected = network.body(network.head(lr))
    freeze_features(network)
    network.train()
    assert torch.equal(network.body(network.head(lr)), expected)


# -- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_fsrcnn_kernel_is_centred_on_its_pixel(scale: int) -> None:
    """Light of one LR pixel reaches as far to either side of it: exactly for odd scales, to one HR pixel for even."""
    network = Fsrcnn(resolve_settings("fsrcnn"), scale, 1)
    upsampling = network.upsampling
    nn.init.ones_(upsampling.weight)
    assert upsampling.bias is not None
    nn.init.zeros_(upsampling.bias)
    pixel = 6
    lr = torch.zeros(1, upsampling.in_channels, 13, 13)
    lr[..., pixel, pixel] = 1
    for axis in (2, 3):
        lit = upsampling(lr).sum(dim=(1, 5 - axis)).flatten().nonzero().flatten()
        before = scale * pixel - int(lit.min())
        after = int(lit.max()) - (scale * pixel + scale - 1)
        assert abs(before - after) == (scale + 1) % 2


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_interpolation_keeps_constants_and_the_flux_and_centre_of_a_source(name: str, scale: int) -> None:
    network = small_network(name, scale)
    torch.testing.assert_close(network(torch.full((1, 1, 5, 7), 3.0)), torch.full((1, 1, 5 * scale, 7 * scale), 3.0))

    y, x = np.mgrid[:32, :32]
    source = np.exp(-((x - 15.3) ** 2 + (y - 14.6) ** 2) / (2 * 2.0**2))
    output = network(torch.from_numpy(source)[None, None].float())[0, 0].double().numpy()
    flux = output / scale**2
    assert flux.sum() == pytest.approx(source.sum(), rel=1e-6)
    y, x = (np.mgrid[: 32 * scale, : 32 * scale] + 0.5) / scale - 0.5  # centres of HR pixels in LR pixels
    assert (flux * x).sum() / flux.sum() == pytest.approx((source * np.mgrid[:32, :32][1]).sum() / source.sum())
    assert (flux * y).sum() / flux.sum() == pytest.approx((source * np.mgrid[:32, :32][0]).sum() / source.sum())


def test_bilinear_matches_its_closed_form() -> None:
    """HR pixels of scale 2 lie a quarter of an LR pixel from the nearest centre: weights 3/4 and 1/4."""
    lr = images(1, 1, 5, 6)
    output = small_network("bilinear", 2)(lr)
    rows = 0.75 * lr[..., 1:-1, :] + 0.25 * lr[..., :-2, :]
    expected = 0.75 * rows[..., 1:-1] + 0.25 * rows[..., 2:]
    torch.testing.assert_close(output[..., 2:-2:2, 3:-2:2], expected)


def test_bicubic_matches_keys_kernel() -> None:
    lr = images(1, 1, 1, 16).expand(1, 1, 16, 16)  # no change from row to row: one dimension is tested at a time
    output = small_network("bicubic", 4)(lr)[0, 0, 32]

    def kernel(distance: float, a: float = -0.75) -> float:
        d = abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    for pixel in range(12, 52):
        place = (pixel + 0.5) / 4 - 0.5
        expected = sum(kernel(place - i) * float(lr[0, 0, 0, i]) for i in range(16))
        assert float(output[pixel]) == pytest.approx(expected, abs=1e-5)


# -- discriminator and losses -----------------------------------------------------------------------------------------


def test_discriminator_has_the_papers_layers() -> None:
    """Figure 4 at 96x96 RGB, layer by layer: k3n64s1 ... k3n512s2, dense 1024, dense 1."""
    channels = [3, 64, 64, 128, 128, 256, 256, 512, 512]
    convolutions = sum(9 * a * b for a, b in pairwise(channels)) + 64  # the first has a bias
    normalisations = sum(2 * one for one in channels[2:])
    dense = 512 * 6 * 6 * 1024 + 1024 + 1024 + 1
    with torch.device("meta"):
        discriminator = Discriminator(96, 3)
    assert parameter_count(discriminator) == convolutions + normalisations + dense == 23_563_649


@pytest.mark.parametrize("size", [16, 33, 96])
def test_discriminator_takes_the_crops_it_was_made_for(size: int) -> None:
    discriminator = Discriminator(size, 1, features=4, dense=8)
    assert discriminator(images(2, 1, size, size)).shape == (2, 1)


def test_discriminator_refuses_crops_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels, not 15"):
        Discriminator(15, 1)


def test_discriminator_learns_to_tell_sharp_from_blurred() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = Discriminator(32, 1, features=8, dense=16)
    sharp = images(8, 1, 32, 32)
    blurred = nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    labels = torch.cat([torch.ones(8, 1), torch.zeros(8, 1)])
    losses = []
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(20):
        logits = discriminator(torch.cat([sharp, blurred]))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_srgan_starts_from_srresnet() -> None:
    assert (
        resolve_settings("srgan", "full").model_dump().items()
        >= resolve_settings("srresnet", "full").model_dump().items()
    )
    srresnet, srgan = small_network("srresnet", seed=1), small_network("srgan", seed=2)
    srgan.load_state_dict(srresnet.state_dict())
    lr = images(1, 1, 8, 8)
    assert torch.equal(srgan.eval()(lr), srresnet.eval()(lr))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("l1", (1 + 3) / 2), ("mse", (1 + 9) / 2), ("charbonnier", (np.hypot(1, 1e-3) + np.hypot(3, 1e-3)) / 2)],
)
def test_pixel_loss_is_the_mean_over_real_pixels(name: str, expected: float) -> None:
    prediction = torch.tensor([[[[1.0, 5.0, float("nan")]]]], requires_grad=True)
    target = torch.tensor([[[[2.0, 2.0, 7.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    loss = pixel_loss(name)(prediction, target, mask)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    assert prediction.grad[..., 2] == 0
    assert pixel_loss(name)(prediction[..., :2], target[..., :2], None).item() == pytest.approx(expected, rel=1e-6)


def test_pixel_loss_computes_in_float32_and_is_zero_without_real_pixels() -> None:
    prediction, target = torch.full((1, 1, 2, 2), 100.0, dtype=torch.bfloat16), torch.full((1, 1, 2, 2), 100.2)
    loss = pixel_loss("l1")(prediction, target, None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.2, rel=1e-4)
    assert pixel_loss("l1")(prediction, target, torch.zeros(1, 1, 2, 2, dtype=torch.bool)).item() == 0
