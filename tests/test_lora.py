"""Low-rank adapters: against the sum written out, with numpy's ranks, and through the trainer."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from simulate.errors import InputError
from sr.models import ARCHITECTURES
from sr.models.d4 import act
from sr.models.fsrcnn_equivariant import EquivariantFsrcnn, EquivariantFsrcnnSettings
from sr.models.lora import LowRankUpdate, add_adapters, merge_adapters
from sr.schedule import LoopSettings
from sr.trainer import Trainer
from sr.training import initial_network

from .test_training import blob_samples, ignore
from .test_warm_start import SIZES


def tiny_network(architecture: str, seed: int = 0) -> nn.Module:
    settings = ARCHITECTURES[architecture].settings.model_validate(SIZES[architecture])
    return initial_network(architecture, settings, 2, 1, seed).eval()


def adapted(network: nn.Module, rank: int = 2, move: bool = True) -> list[LowRankUpdate]:
    """Add adapters to `network` and, with `move`, give their B values as if they had learned."""
    generator = torch.Generator().manual_seed(1)
    add_adapters(network, rank, generator)
    updates = [module for module in network.modules() if isinstance(module, LowRankUpdate)]
    for update in updates:
        nn.init.normal_(update.up, std=0.3 if move else 0.0, generator=generator)
    return updates


IMAGES = torch.rand(2, 1, 11, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", SIZES)
def test_the_network_is_unchanged_at_first_and_merging_keeps_output_and_keys(architecture: str) -> None:
    network = tiny_network(architecture)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        first = network(IMAGES)
        moved = copy.deepcopy(network)
        add_adapters(network, 2, torch.Generator().manual_seed(0))
        assert torch.equal(network(IMAGES), first)
        adapted(moved)
        expected = copy.deepcopy(moved)(IMAGES)
        assert (expected - first).abs().max() > 1e-4
        merge_adapters(moved)
        torch.testing.assert_close(moved(IMAGES), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    after = moved.state_dict()
    assert after.keys() == before.keys()
    changed = set()
    for name, tensor in after.items():
        assert tensor.shape == before[name].shape
        if not torch.equal(tensor, before[name]):
            changed.add(name)
            change = (tensor - before[name]).flatten(1).double().numpy()
            assert np.linalg.matrix_rank(change, tol=1e-5 * np.linalg.norm(change)) <= 2, name
    assert changed == {name for name, tensor in before.items() if name.endswith(".weight") and tensor.ndim > 1}
    tiny_network(architecture, seed=3).load_state_dict(after)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.ConvTranspose2d(6, 4, 5, stride=2, padding=2), nn.Linear(6, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_an_adapter_is_the_sum_written_out(layer: nn.Module) -> None:
    network = nn.Sequential(copy.deepcopy(layer))
    (update,) = adapted(network, rank=3)
    weight = layer.weight.detach().numpy().astype(float)
    up, down = (one.detach().numpy().astype(float) for one in (update.up, update.down))
    assert down.shape == (3, weight[0].size)
    for rank in range(3):
        weight += np.multiply.outer(up[:, rank], down[rank].reshape(weight.shape[1:]))
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor(weight))
    x = torch.rand(2, 6) if isinstance(layer, nn.Linear) else torch.rand(2, 6, 7, 8)
    torch.testing.assert_close(network(x), plain(x))
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in learning) == 3 * (len(weight) + weight[0].size)


def test_a_rank_beyond_the_matrix_is_not_stored() -> None:
    (update,) = adapted(nn.Sequential(nn.Conv2d(8, 1, 3)), rank=5)
    assert update.down.shape == (1, 72)
    assert update.up.shape == (1, 1)


@pytest.mark.parametrize("architecture", ["srresnet", "fsrcnn"])
def test_training_changes_the_adapters_alone_and_starts_at_the_old_network(architecture: str) -> None:
    network = tiny_network(architecture)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    updates = adapted(network, move=False)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settings = LoopSettings(steps=4, batch_size=2, crop_size=8, learning_rate=1e-2, warm_up_fraction=0)
    trainer = Trainer(network, blob_samples(), settings, seed=0)
    assert len(trainer.parameters) == 2 * len(updates)
    trainer.run(ignore)
    for name, tensor in network.state_dict().items():
        adapter = name.endswith((".up", ".down"))
        assert adapter != torch.equal(tensor, first[name]), name
    kept = network.eval()(IMAGES)
    torch.testing.assert_close(trainer.average(IMAGES), kept, rtol=0, atol=0)
    merge_adapters(network)
    assert network.state_dict().keys() == before.keys()
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), kept, rtol=1e-6, atol=1e-6 * float(kept.abs().max()))


def test_weights_stay_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(6, 4, 3)).to(memory_format=torch.channels_last)
    adapted(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_adapted_equivariant_network_is_equivariant() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = EquivariantFsrcnnSettings(fields=3, shrunk_fields=2, mapping_layers=1)
        network = EquivariantFsrcnn(settings, 2, 1)
    with torch.no_grad():
        first = network(IMAGES)
        adapted(network)
        output = network(IMAGES)
        assert (output - first).abs().max() > 0.1 * output.abs().max()
        for element in range(8):
            turned = network(act(element, IMAGES))
            torch.testing.assert_close(turned, act(element, output), rtol=0, atol=1e-5 * float(output.abs().max()))


def test_the_generator_alone_decides_and_copies_do_not_share() -> None:
    one, two = tiny_network("rcan"), tiny_network("rcan")
    state = torch.get_rng_state()
    adapted(one)
    assert torch.equal(torch.get_rng_state(), state)
    adapted(two)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    replica = copy.deepcopy(one)
    merge_adapters(replica)
    assert any(isinstance(module, LowRankUpdate) for module in one.modules())
    assert not any(isinstance(module, LowRankUpdate) for module in replica.modules())


def test_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential: no layer has a weight matrix"):
        add_adapters(nn.Sequential(nn.PReLU(4), nn.BatchNorm2d(4)), 2, torch.Generator())
