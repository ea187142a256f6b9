"""SwinIR's shifted windows against attention written out pixel by pixel, and its padding against numpy's."""

import numpy as np
import pytest
import torch
from torch import nn

from sr.models.swinir import Swinir, SwinirSettings, SwinLayer, mirror_to_multiple, pixels_together

SETTINGS = SwinirSettings(groups=1, layers=2, features=6, heads=2, window=4)


def seeded(build: type[nn.Module], *arguments: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(*arguments)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def attention_pixel_by_pixel(layer: SwinLayer, x: np.ndarray, shift: int) -> np.ndarray:
    """Each pixel of x (h,w,C) attends to those in the same cell of a grid whose lines are at `shift` + window * n."""
    height, width, features = x.shape
    attention, window, size = layer.attention, SETTINGS.window, features // SETTINGS.heads
    weights, biases = attention.inputs.weight.double().numpy(), attention.inputs.bias.double().numpy()
    queries, keys, values = np.split(x @ weights.T + biases, 3, axis=-1)
    table = attention.position_bias.double().numpy()
    mixed = np.zeros_like(x)
    for y, v in np.ndindex(height, width):
        cell = [
            (other, column)
            for other, column in np.ndindex(height, width)
            if (other - shift) // window == (y - shift) // window
            and (column - shift) // window == (v - shift) // window
        ]
        for head in range(SETTINGS.heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.array(
                [
                    queries[y, v, part] @ keys[there][part] / np.sqrt(size)
                    + table[head, y - there[0] + window - 1, v - there[1] + window - 1]
                    for there in cell
                ]
            )
            share = np.exp(scores) / np.exp(scores).sum()
            mixed[y, v, part] = sum(one * values[there][part] for one, there in zip(share, cell, strict=True))
    return mixed @ attention.output.weight.double().numpy().T + attention.output.bias.double().numpy()


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("shape", [(8, 12), (4, 4)])
@torch.no_grad()
def test_window_attention_is_what_it_is_pixel_by_pixel(shift: int, shape: tuple[int, int]) -> None:
    layer = seeded(SwinLayer, SETTINGS, shift).double()
    assert isinstance(layer, SwinLayer)
    for parameter in layer.parameters():  # the first biases are too small to see
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 2)
    layer.perceptron[-1].weight.zero_()
    layer.perceptron[-1].bias.zero_()
    x = images(2, *shape, SETTINGS.features).double()
    together = pixels_together(*shape, SETTINGS.window, shift, x.device)
    added = (layer(x, together) - x).numpy()
    for image, expected in zip(layer.attention_norm(x).numpy(), added, strict=True):
        np.testing.assert_allclose(attention_pixel_by_pixel(layer, image, shift), expected, atol=1e-12)


@torch.no_grad()
def test_every_second_layer_lets_light_cross_the_window_borders() -> None:
    """One layer carries a pixel through its window alone, the next one further, but not around the image."""
    network = seeded(Swinir, SETTINGS, 2, 1).double()
    assert isinstance(network, Swinir)
    layers = network.groups[0].layers
    assert [layer.shift for layer in layers] == [0, 2]
    x = images(1, 12, 12, SETTINGS.features).double()
    changed = x.clone()
    changed[0, 5, 5] += images(SETTINGS.features)
    together = pixels_together(12, 12, 4, 2, x.device)
    middle = layers[0](x, together), layers[0](changed, together)
    reached = (middle[0] != middle[1]).any(-1)[0]
    assert reached[4:8, 4:8].all()
    assert reached.sum() == 16
    reached = (layers[1](middle[0], together) != layers[1](middle[1], together)).any(-1)[0]
    assert reached[2:10, 2:10].all()
    assert reached.sum() == 64


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 13, 16])
def test_padding_is_the_mirror_image(size: int) -> None:
    x = images(1, 1, size, 3)
    padded = mirror_to_multiple(x, 2, 8)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, -size % 8), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(padded.numpy(), expected)


@pytest.mark.parametrize("shape", [(3, 5), (7, 7), (8, 11)])
@torch.no_grad()
def test_odd_images_are_cut_out_of_their_mirrored_continuation(shape: tuple[int, int]) -> None:
    network = seeded(Swinir, SwinirSettings(groups=1, layers=2, features=8, heads=2), 3, 1).eval()
    lr = images(2, 1, *shape)
    padding = [(0, 0), (0, 0), *((0, -size % 8) for size in shape)]
    whole = network(torch.from_numpy(np.pad(lr.numpy(), padding, mode="symmetric")))
    output = network(lr)
    assert output.shape[-2:] == (3 * shape[0], 3 * shape[1])
    torch.testing.assert_close(output, whole[..., : output.shape[-2], : output.shape[-1]])


@torch.no_grad()
def test_weights_start_as_in_the_published_code() -> None:
    """Linear weights and position biases are normal with deviation 0.02, linear biases 0."""
    network = seeded(Swinir, SwinirSettings(), 2, 1)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
    tables = [value for key, value in network.named_parameters() if key.endswith("position_bias")]
    assert len(tables) == 24
    assert float(torch.stack(tables).std()) == pytest.approx(0.02, rel=0.05)


@torch.no_grad()
def test_attention_computes_in_bfloat16_under_autocast_and_stays_near() -> None:
    network = seeded(Swinir, SwinirSettings(groups=1, layers=2, features=16, heads=2), 2, 1).eval()
    lr = images(1, 1, 16, 16)
    exact = network(lr)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(lr)
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.02
