"""Every network of the registry against the papers' counts, its contract and what training must do to it."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pipeline
from simulate.errors import InputError
from sr.degradation import Degradation, knows_degradation
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
from sr.operators import ForwardOperator
from sr.samples import Batch

from .conftest import blob_pairs, gaussian_kernel

TINY: dict[str, dict[str, Any]] = {
    "srcnn": {"features": 16},
    "srresnet": {"blocks": 2, "features": 16},
    "edsr": {"blocks": 2, "features": 16},
    "rdn": {"blocks": 2, "layers": 2, "growth": 8, "features": 16},
    "rcan": {"groups": 1, "blocks": 2, "features": 16, "reduction": 4},
    "swinir": {"groups": 1, "layers": 2, "features": 16, "heads": 2, "window": 4},
    "srgan": {"blocks": 2, "features": 16},
    "flow": {"blocks": 2, "features": 32},
    "unrolled": {"steps": 2, "blocks": 1, "fields": 3},
    "lens_encoder": {"features": 8, "hidden": 16, "refinements": 1},
    "unrolled_lens": {
        **{"steps": 2, "blocks": 1, "fields": 3},
        "encoder": {"features": 8, "hidden": 16, "refinements": 0, "iterations": 1},
    },
}
"""What to change of the smallest size where it takes long."""

UNREFINED = {"lens_encoder": {"refinements": 0}, "unrolled_lens": {"encoder": {"refinements": 0}}}
"""What changes no shape and saves time."""

INTERPOLATING = ["flow", "unrolled", "lens_encoder", "unrolled_lens"]
"""Networks whose output starts as the interpolated image, or as one that fits the LR image."""

TRAINABLE = [name for name, architecture in ARCHITECTURES.items() if architecture.trainable]


def small_network(name: str, scale: int = 2, channels: int = 1, seed: int = 0) -> nn.Module:
    """A small network of the kind, its weights drawn from `seed` without touching the global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = resolve_settings(name, list(ARCHITECTURES[name].sizes)[-1], TINY.get(name))
        return told_of_blobs(build_network(name, settings, scale, channels), scale)


def told_of_blobs(network: nn.Module, scale: int) -> nn.Module:
    """`network`; if it knows the degradation, one that is called with the LR image alone: it is told `blob_pairs`'."""
    if knows_degradation(network):
        operator = ForwardOperator(gaussian_kernel(0.6 * 2.3548 * scale, 4 * scale + 1)[None], scale)
        network.forward = partial(_forward, network.forward, operator)
        if hasattr(network, "training_loss"):
            network.training_loss = partial(_training_loss, network.training_loss, operator)
    return network


def _forward(forward: Callable[..., torch.Tensor], operator: ForwardOperator, lr: torch.Tensor) -> torch.Tensor:
    noise = lr.new_full((len(lr), 1, *lr.shape[-2:]), 0.05)
    return forward(lr, Degradation(noise, operator.to(lr.device)))


def _training_loss(
    loss: Callable[..., torch.Tensor], operator: ForwardOperator, batch: Batch, generator: torch.Generator
) -> torch.Tensor:
    return loss(batch, generator, Degradation(batch.noise, operator))


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train(network: nn.Module, lr: torch.Tensor, hr: torch.Tensor, steps: int) -> None:
    """Adam on all of `hr`: on the network's own loss if it has one, else on the mean squared error."""
    everywhere = torch.ones_like(hr, dtype=torch.bool)
    rows = torch.arange(len(lr))
    batch = Batch(lr, hr, everywhere, torch.full_like(lr, 0.05), rows, torch.zeros_like(rows))
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    network.train()
    for _ in range(steps):
        own = getattr(network, "training_loss", None)
        loss = own(batch, generator) if own else (network(lr) - hr).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


# -- registry ---------------------------------------------------------------------------------------------------------


def test_registry_has_the_architectures_in_order() -> None:
    names = "bilinear bicubic srcnn fsrcnn fsrcnn_equivariant fsrcnn_hybrid srresnet edsr rdn rcan swinir srgan flow"
    assert list(ARCHITECTURES) == [*names.split(), "unrolled", "lens_encoder", "unrolled_lens"]
    assert [name for name, architecture in ARCHITECTURES.items() if architecture.unsupervised] == ["lens_encoder"]
    assert [name for name, architecture in ARCHITECTURES.items() if architecture.adversarial] == ["srgan"]
    assert list(ARCHITECTURES)[2:] == TRAINABLE


@pytest.mark.parametrize("name", TRAINABLE)
def test_sizes_run_from_the_full_one_down_to_the_small_one(name: str) -> None:
    sizes = list(ARCHITECTURES[name].sizes)
    assert (sizes[0], sizes[-1]) == ("full", "small")
    with torch.device("meta"):
        counts = [parameter_count(build_network(name, resolve_settings(name, size), 2)) for size in sizes]
    assert counts[0] > counts[-1] == min(counts)


def count(name: str, size: str, scale: int, channels: int) -> int:
    with torch.device("meta"):
        return parameter_count(build_network(name, resolve_settings(name, size), scale, channels))


@pytest.mark.parametrize(
    ("name", "size", "scale", "channels", "expected"),
    [
        ("bicubic", "full", 2, 1, 0),
        # FSRCNN's paper counts 57 184 and 8 032: without the 97 biases.
        ("srcnn", "full", 2, 1, 57_281),
        ("srcnn", "small", 4, 1, 8_129),
        ("fsrcnn", "full", 2, 1, 12_809),
        ("fsrcnn", "full", 4, 1, 12_809),
        ("srresnet", "full", 2, 1, 1_381_011),
        ("srresnet", "full", 4, 1, 1_528_724),
        ("edsr", "baseline", 2, 3, 1_369_859),
        ("edsr", "baseline", 4, 3, 1_517_571),
        ("edsr", "full", 2, 3, 40_729_603),
        ("edsr", "full", 4, 3, 43_089_923),
        ("rdn", "full", 2, 3, 22_123_395),
        ("rdn", "full", 4, 3, 22_271_107),
        # The published code of RCAN counts 24 values more: its fixed RGB mean shift, which is not trained.
        ("rcan", "full", 2, 3, 15_444_643),
        ("rcan", "full", 4, 3, 15_592_355),
        ("rcan", "full", 4, 1, 15_590_049),
        # SwinIR's paper counts 878, 886 and 897 thousand: without the 32 400 position biases of its code.
        ("swinir", "full", 2, 3, 910_152),
        ("swinir", "full", 3, 3, 918_267),
        ("swinir", "full", 4, 3, 929_628),
        ("srgan", "full", 4, 1, 1_528_724),
    ],
)
def test_network_has_the_published_parameter_count(
    name: str, size: str, scale: int, channels: int, expected: int
) -> None:
    assert count(name, size, scale, channels) == expected


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    """Parameters of a convolution with biases."""
    return (inputs * kernel**2 + 1) * outputs


@pytest.mark.parametrize(("stages", "channels"), [(1, 3), (2, 1)])
def test_parameter_counts_follow_from_the_papers_layers(stages: int, channels: int) -> None:
    scale = 2**stages
    inner, norm = conv(64, 64), 2 * 64
    shuffles, ends = stages * conv(64, 256), conv(channels, 64) + conv(64, channels)
    wide = 32 * 2 * conv(256, 256) + conv(256, 256) + stages * conv(256, 1024) + conv(channels, 256)
    attention = conv(64, 4, 1) + conv(4, 64, 1)
    dense = sum(conv(64 * (1 + layer), 64) for layer in range(8)) + conv(64 * 9, 64, 1)
    swin = 2 * 2 * 60 + 6 * 15**2 + conv(60, 180, 1) + conv(60, 60, 1) + conv(60, 120, 1) + conv(120, 60, 1)
    nines = conv(channels, 64, 9) + 1 + conv(64, channels, 9)  # and the head's PReLU
    expected = {
        ("srcnn", "full"): conv(channels, 64, 9) + conv(64, 32, 5) + conv(32, channels, 5),
        ("srcnn", "small"): conv(channels, 64, 9) + conv(64, 32, 1) + conv(32, channels, 5),
        # blocks of convolutions, batch norms and a PReLU; a convolution and batch norm; a PReLU in each shuffle stage
        ("srresnet", "full"): nines + 16 * (2 * (inner + norm) + 1) + inner + norm + shuffles + stages,
        ("srresnet", "deep"): nines + 18 * (2 * (inner + norm) + 1) + inner + norm + shuffles + stages,
        ("edsr", "baseline"): ends + 16 * 2 * inner + inner + shuffles,
        ("edsr", "full"): wide + conv(256, channels),
        ("rdn", "full"): ends + inner + 16 * dense + conv(16 * 64, 64, 1) + inner + shuffles,
        ("rcan", "full"): ends + 10 * (20 * (2 * inner + attention) + inner) + inner + shuffles,
        ("rcan", "compact"): ends + 5 * (10 * (2 * inner + attention) + inner) + inner + shuffles,
        ("swinir", "full"): conv(channels, 60) + 4 * (6 * swin + conv(60, 60)) + 2 * 2 * 60 + conv(60, 60)
        + conv(60, channels * scale**2),
    }  # fmt: skip
    assert {known: count(*known, scale, channels) for known in expected} == expected


def test_command_lists_sizes_with_their_parameters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sr.models.ARCHITECTURES", {name: ARCHITECTURES[name] for name in ("bicubic", "edsr")})
    pipeline.models()
    listed = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert listed[1] == ["bicubic", "full", "0", "0", ARCHITECTURES["bicubic"].paper]
    # one channel: RGB's 1 369 859 and 1 517 571 less what the first and last layer have for two more channels
    less = 2 * 9 * 64 + 2 * (9 * 64 + 1)
    counts = [f"{1_369_859 - less:,}", f"{1_517_571 - less:,}"]
    assert listed[3] == ["edsr", "baseline", *counts, ARCHITECTURES["edsr"].paper]


def test_unknown_name_size_key_and_scale_are_input_errors() -> None:
    with pytest.raises(InputError, match="did you mean 'srresnet'"):
        find_architecture("srresnett")
    with pytest.raises(InputError, match="no size 'tiny'; its sizes are full, compact, small"):
        resolve_settings("rcan", "tiny")
    with pytest.raises(InputError, match=r"settings of rcan: unknown key 'block' \(did you mean 'blocks'\?\)"):
        resolve_settings("rcan", "small", {"block": 3})
    with pytest.raises(InputError, match="greater than 0"):
        resolve_settings("fsrcnn", "small", {"features": 0})
    with pytest.raises(InputError, match=r"features \(30\) must be a multiple of reduction \(8\)"):
        resolve_settings("rcan", "small", {"features": 30})
    with pytest.raises(InputError, match=r"features \(60\) must be a multiple of heads \(7\)"):
        resolve_settings("swinir", "full", {"heads": 7})
    with pytest.raises(InputError, match="the kernel must be odd, not 4"):
        resolve_settings("srcnn", "full", {"mapping_kernel": 4})
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
    output = network(images(2, channels, 5, 12))
    assert output.shape == (2, channels, 5 * scale, 12 * scale)
    assert output.dtype == torch.float32
    assert output.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_size_fits_together(name: str) -> None:
    for size in ARCHITECTURES[name].sizes:
        with torch.device("meta"):
            network = told_of_blobs(build_network(name, resolve_settings(name, size, UNREFINED.get(name)), 4), 4)
            assert network(torch.empty(1, 1, 9, 11)).shape == (1, 1, 36, 44), size


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


@pytest.mark.parametrize("name", [name for name in TRAINABLE if not ARCHITECTURES[name].unsupervised])
def test_network_overfits_one_small_batch(name: str) -> None:
    pairs = blob_pairs(2, lr_size=8)
    lr, hr = torch.from_numpy(pairs.lr) / 4, torch.from_numpy(pairs.hr)
    network = small_network(name)
    train(network, lr, hr, steps=80)

    def error(one: nn.Module) -> float:
        with torch.inference_mode():
            return float((one.eval()(lr) - hr).square().mean())

    assert error(network) < 0.35 * error(small_network("bicubic"))


def flux_of_flat_images(name: str, steps: int) -> torch.Tensor:
    """Surface brightness away from the border over what it should be, (2,h,w), of flat images of two levels.

    The network has learnt `steps` steps on other levels and two images of blobs.
    """
    pairs = blob_pairs(2, lr_size=10)
    learnt, asked = torch.tensor([0.5, 1, 2])[:, None, None, None], torch.tensor([0.7, 1.5])[:, None, None, None]
    lr = torch.cat([torch.from_numpy(pairs.lr) / 4, learnt.expand(3, 1, 10, 10)])
    hr = torch.cat([torch.from_numpy(pairs.hr), learnt.expand(3, 1, 20, 20)])
    network = small_network(name)
    if steps:
        train(network, lr, hr, steps)
    with torch.inference_mode():
        return (network.eval()(asked.expand(2, 1, 10, 10)) / asked)[:, 0, 4:-4, 4:-4]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flux_of_a_constant_image_is_kept(name: str) -> None:
    """The level goes through: what learnt some levels keeps others, to 6 % in flux and 15 % in every HR pixel.

    A network that normalises each image by its own mean could not, nor one that leaves out one of an LR pixel's HR
    pixels. Interpolations do it exactly, other networks not before they learn.
    """
    if name not in TRAINABLE:
        torch.testing.assert_close(flux_of_flat_images(name, 0), torch.ones(2, 12, 12))
        return
    ratio = flux_of_flat_images(name, 100)
    assert ratio.mean((1, 2)) == pytest.approx([1, 1], abs=0.06)
    assert float((ratio - 1).abs().max()) < 0.15
    if name not in INTERPOLATING:
        assert float((flux_of_flat_images(name, 0).mean((1, 2)) - 1).abs().min()) > 0.5


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
    assert moved == {key for key in network.state_dict() if not key.startswith("encoder.")}  # it is trained elsewhere


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


# -- discriminator ----------------------------------------------------------------------------------------------------


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
