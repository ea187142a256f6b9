"""D4 layers against the group's definition, and the networks built of them against their own turned images."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sr.models import build_network, parameter_count, resolve_settings
from sr.models.d4 import GroupConvolution, GroupPReLU, GroupUpsampling, act, centred_kernel, inverse, product
from sr.samples import transform

from .conftest import blob_pairs

ELEMENTS = range(8)
TOLERANCE = 1e-5


def small_network(name: str, scale: int = 2, channels: int = 1, size: str = "small") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(name, resolve_settings(name, size), scale, channels)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train(network: nn.Module, steps: int, lr_size: int = 12, rate: float = 5e-3, scale: int = 2) -> None:
    """Steps on blobs that are all drawn out along one axis: nothing in the data asks for symmetry."""
    pairs = blob_pairs(4, scale, lr_size)
    lr = torch.from_numpy(pairs.lr)[..., ::2] / scale**2
    hr = torch.from_numpy(pairs.hr)[..., : scale * lr.shape[-1]]
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(steps):
        loss = (network(lr) - hr).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def equivariance_errors(network: nn.Module, height: int, width: int, channels: int = 1) -> list[float]:
    """max |f(g x) - g f(x)| / max |f(x)| for each of the 8 elements."""
    lr = images(2, channels, height, width, seed=1)
    output = network(lr)
    differences = [network(act(element, lr)) - act(element, output) for element in ELEMENTS]
    return [float(difference.abs().max() / output.abs().max()) for difference in differences]


# -- the group --------------------------------------------------------------------------------------------------------


def matrix(element: int) -> np.ndarray:
    """How an element moves a displacement (dy, dx) from the image's centre."""
    mirror = np.diag([-1 if element & 2 else 1, -1 if element & 1 else 1])
    return np.array([[0, 1], [1, 0]]) @ mirror if element & 4 else mirror


def test_the_elements_are_the_turns_and_mirrored_turns_of_a_square() -> None:
    square = np.arange(9).reshape(3, 3)
    expected = {np.rot90(start, turns).tobytes() for start in (square, np.fliplr(square)) for turns in range(4)}
    assert {act(g, torch.from_numpy(square)).numpy().tobytes() for g in ELEMENTS} == expected
    assert len(expected) == 8


def test_elements_are_numbered_as_in_the_augmentation() -> None:
    squares = images(8, 1, 5, 5)
    turned = transform(squares, torch.arange(8))
    assert torch.equal(turned, torch.stack([act(g, squares[g]) for g in ELEMENTS]))


def test_product_and_inverse_are_those_of_the_actions() -> None:
    rectangle = images(4, 7)
    for left, right in itertools.product(ELEMENTS, ELEMENTS):
        assert torch.equal(act(product(left, right), rectangle), act(left, act(right, rectangle)))
        np.testing.assert_array_equal(matrix(product(left, right)), matrix(left) @ matrix(right))
    for element in ELEMENTS:
        assert torch.equal(act(inverse(element), act(element, rectangle)), rectangle)


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lift", [True, False])
def test_group_convolution_is_the_papers_sum(lift: bool) -> None:
    """Equations 10 and 11, (f * w)(y, g) = sum over x, k of f(x, k) w(g^-1 (x - y), g^-1 k), element by element."""
    inputs, outputs, height, width = 2, 2, 4, 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = GroupConvolution(inputs, outputs, 3, lift)
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    elements = [0] if lift else list(ELEMENTS)
    fields = images(1, inputs * len(elements), height, width)
    weight = layer.weight.detach().view(outputs, inputs, len(elements), 3, 3).double().numpy()
    padded = np.pad(fields[0].double().numpy(), ((0, 0), (1, 1), (1, 1))).reshape(inputs, len(elements), 6, 7)
    numbers = {matrix(g).tobytes(): g for g in ELEMENTS}

    expected = np.zeros((outputs, 8, height, width))
    for g, k, dy, dx in itertools.product(ELEMENTS, elements, (-1, 0, 1), (-1, 0, 1)):
        back = matrix(g).T
        place = back @ [dy, dx] + 1
        channel = 0 if lift else numbers[np.ascontiguousarray(back @ matrix(k)).tobytes()]
        window = padded[:, k, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        expected[:, g] += np.einsum("oi,iyx->oyx", weight[:, :, channel, place[0], place[1]], window)
    expected += layer.bias.detach().double().numpy()[:, None, None, None]
    np.testing.assert_allclose(layer(fields)[0].detach().numpy(), expected.reshape(-1, height, width), atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_upsampling_kernel_is_centred_exactly_on_its_pixel(scale: int) -> None:
    upsampling = GroupUpsampling(1, 1, scale)
    nn.init.ones_(upsampling.weight)
    pixel = 6
    lr = torch.zeros(1, 8, 13, 11)
    lr[..., pixel, pixel] = 1
    output = upsampling(lr)
    assert output.shape == (1, 1, 13 * scale, 11 * scale)
    for axis in (2, 3):
        lit = output.sum(5 - axis).flatten().nonzero().flatten()
        assert int(lit.min() + lit.max()) == 2 * scale * pixel + scale - 1
        assert len(lit) == centred_kernel(scale)


def test_fsrcnns_nine_pixel_kernel_cannot_be_equivariant_at_an_even_scale() -> None:
    """Even a kernel that is its own mirror image is off by half an HR pixel; ten pixels are not."""
    lr = images(1, 1, 8, 8)

    def mirror_error(kernel: int, padding: int, output_padding: int) -> float:
        weight = torch.ones(1, 1, kernel, kernel)

        def up(x: torch.Tensor) -> torch.Tensor:
            return functional.conv_transpose2d(x, weight, stride=2, padding=padding, output_padding=output_padding)

        return float((up(lr.flip(-1)) - up(lr).flip(-1)).abs().max() / up(lr).abs().max())

    assert mirror_error(9, 4, 1) > 0.1
    assert mirror_error(10, 4, 0) < TOLERANCE


def test_an_even_kernel_is_refused_at_the_same_size() -> None:
    with pytest.raises(ValueError, match="a kernel of 4 pixels is not centred on a pixel"):
        GroupConvolution(1, 1, 4)


def test_channels_last_weights_give_the_same_image() -> None:
    """In that layout the order in memory is not the order of the axes."""
    network, lr = small_network("fsrcnn_equivariant", channels=2), images(2, 2, 9, 7)
    expected = network(lr)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network(lr.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("size", ["small", "full"])
def test_initial_weights_keep_the_second_moment_from_layer_to_layer(size: str) -> None:
    """A fan-in without the group would give each layer of fields 8 times the power of the one before."""
    network = small_network("fsrcnn_equivariant", size=size)
    x = images(8, 1, 24, 24)
    powers = []
    with torch.no_grad():
        for layer in network.get_submodule("features").children():
            x = layer(x)
            if isinstance(layer, GroupConvolution):
                inside = x[..., 4:-4, 4:-4]  # zeros from beyond the border lower the power
                powers.append(float(inside.square().mean()) * (1 + 0.25**2) / 2)  # what the PReLU leaves of it
    assert powers[0] == pytest.approx(1, abs=0.4)
    for before, after in itertools.pairwise(powers):
        assert 0.4 < after / before < 2.5


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 8])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_turned_images_are_super_resolved_alike(scale: int, steps: int) -> None:
    network = small_network("fsrcnn_equivariant", scale)
    train(network, steps, scale=scale)
    for height, width in ((9, 9), (8, 8), (7, 12), (13, 5)):
        assert max(equivariance_errors(network, height, width)) < TOLERANCE


def test_the_full_size_and_several_channels_are_equivariant() -> None:
    assert max(equivariance_errors(small_network("fsrcnn_equivariant", 2, 3, "full"), 7, 10, channels=3)) < TOLERANCE


def test_training_changes_slopes_and_biases_and_keeps_them_a_field_each() -> None:
    network = small_network("fsrcnn_equivariant")
    train(network, steps=8)
    for layer in network.get_submodule("features").children():
        if isinstance(layer, GroupPReLU):
            assert layer.weight.std() > 0
            assert (layer.weight != 0.25).all()
        else:
            assert (layer.get_parameter("bias") != 0).all()


@pytest.mark.parametrize("name", ["fsrcnn", "fsrcnn_hybrid"])
@pytest.mark.parametrize("scale", [2, 3])
def test_ordinary_upsampling_breaks_the_symmetry(name: str, scale: int) -> None:
    errors = equivariance_errors(small_network(name, scale), 9, 9)
    assert errors[0] == 0
    assert min(errors[1:]) > 0.05


def test_the_hybrids_features_turn_and_change_places_with_the_image() -> None:
    """(g f)_k = act(g, f_{g^-1 k}), after training too."""
    network = small_network("fsrcnn_hybrid")
    train(network, steps=8)
    lr = images(2, 1, 7, 10)
    features = network.get_submodule("features")
    with torch.no_grad():
        straight = features(lr).unflatten(1, (-1, 8))
        for element in ELEMENTS:
            turned = features(act(element, lr)).unflatten(1, (-1, 8))
            for other in ELEMENTS:
                expected = act(element, straight[:, :, product(inverse(element), other)])
                assert (turned[:, :, other] - expected).abs().max() < TOLERANCE * straight.abs().max()


@pytest.mark.parametrize(
    ("name", "size", "scale", "count"),
    [
        ("fsrcnn_equivariant", "full", 2, 648 + 970 + 7240 + 1008 + 2401),
        ("fsrcnn_equivariant", "full", 3, 648 + 970 + 7240 + 1008 + 24 * 81 + 1),
        ("fsrcnn_equivariant", "small", 2, 432 + 520 + 2320 + 544 + 1601),
        ("fsrcnn_hybrid", "full", 2, 189 + 290 + 7240 + 294 + 5601),
        ("fsrcnn_hybrid", "small", 4, 135 + 126 + 1308 + 130 + 4001),
    ],
)
def test_parameter_counts_are_those_derived_by_hand(name: str, size: str, scale: int, count: int) -> None:
    """Free weights of d, s, m fields: lifting 25d, shrinking 8ds, mapping 72s² each, expanding 8sd, all with a bias and
    a slope a field; upsampling K²d, or 8 times that of the hybrid, and a bias, with K = 10 (9 at scale 3). The ordinary
    FSRCNN has 12809 (full) and 5233 (small)."""
    with torch.device("meta"):
        network = build_network(name, resolve_settings(name, size), scale, 1)
    assert parameter_count(network) == count


@pytest.mark.parametrize("name", ["fsrcnn_equivariant", "fsrcnn_hybrid"])
def test_learns_to_do_better_than_bicubic_on_images_it_has_not_seen(name: str) -> None:
    def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = blob_pairs(count, lr_size=12, seed=seed)
        return torch.from_numpy(pairs.lr) / 4, torch.from_numpy(pairs.hr)

    network = small_network(name)
    lr, hr = blobs(24, seed=1)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(60):
        part = slice(8 * (step % 3), 8 * (step % 3) + 8)
        loss = (network(lr[part]) - hr[part]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    lr, hr = blobs(16, seed=2)
    bicubic = functional.interpolate(lr, scale_factor=2, mode="bicubic")
    with torch.no_grad():
        assert float((network(lr) - hr).square().mean() / (bicubic - hr).square().mean()) < 0.7
