"""Warm start: a network begins where a trained one of its kind ended, be it of the same scale or another.

x4 networks start from x2 ones since EDSR (Lim et al. 2017, arXiv:1707.02921, figure 4). Tensors of the same name and
shape are copied. A pixel shuffle that enlarges more than its counterpart starts as that one and nearest-neighbour
enlargement, and where shuffles are stacked a further one as the enlargement alone (in the spirit of Aitken et al. 2017,
arXiv:1707.02937): what comes after sees features that it knows, and a x4 network starts as the x2 one enlarged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simulate.errors import InputError
from simulate.settings import Settings
from simulate.shards import file_sha256

from .model_folder import WEIGHTS_NAME, load_model, read_config
from .models import ARCHITECTURES, find_architecture
from .models.d4 import GroupUpsampling
from .models.unrolled_lens import UnrolledLens


@dataclass(frozen=True)
class WarmStart:
    """What a network took from a trained one; names are those of the network's state dict."""

    model: str
    scale: int
    sha256: str
    """Of the trained model's weights: what a training that starts from them depends on."""
    copied: tuple[str, ...]
    enlarging: tuple[str, ...]
    """Of pixel shuffles that enlarge more, or less, than those of the trained network."""
    left: tuple[str, ...]
    """As they were initialised."""

    def __str__(self) -> str:
        left = ", ".join(self.left) or "none"
        return (
            f"from {self.model} (x{self.scale}): {len(self.copied)} tensors copied, {len(self.enlarging)} enlarging; "
            f"as initialised: {left}"
        )

    def summary(self) -> dict[str, Any]:
        """For config.json and the card."""
        return {"model": self.model, "scale": self.scale, "sha256": self.sha256, "as_initialised": list(self.left)}


def warm_start(network: nn.Module, folder: Path, architecture: str, settings: Settings) -> WarmStart:
    """Give `network`, of this `architecture` and `settings`, all tensors of the model in `folder` that fit it.

    SRGAN's generator may start from an SRResNet. Transposed convolutions of another stride do not fit. Raises
    `InputError` if the folder holds no model, one of another architecture or settings, or nothing that fits.
    """
    check_same_kind(folder, architecture, settings)
    trained = load_model(folder, torch.device("cpu"))
    given, tensors = trained.network.state_dict(), network.state_dict()
    old, origins = dict(trained.network.named_modules()), _origins(trained.network, network)
    factors, old_factors = _shuffle_factors(network), _shuffle_factors(trained.network)
    copied: list[str] = []
    enlarging: list[str] = []
    left: list[str] = []
    for name, tensor in tensors.items():
        layer, _, own_name = name.rpartition(".")
        module, origin, factor = network.get_submodule(layer), origins[layer], factors.get(layer, 1)
        if origin is None:
            found, old_factor = _unchanging(module, own_name), 1
        elif _stride(module) == _stride(old[origin]):
            found, old_factor = given.get(f"{origin}.{own_name}" if origin else own_name), old_factors.get(origin, 1)
        else:
            found, old_factor = None, factor
        if found is not None and factor != old_factor:
            found = _enlarged(found, old_factor, factor)
        if found is None or found.shape != tensor.shape:
            left.append(name)
            continue
        tensors[name] = found
        (enlarging if origin is None or factor != old_factor else copied).append(name)
    if not copied:
        raise InputError(f"warm_start: {folder}: nothing of it fits this network; start without it")
    network.load_state_dict(tensors)
    sha256 = file_sha256(folder / WEIGHTS_NAME)
    return WarmStart(trained.name, trained.config.scale, sha256, tuple(copied), tuple(enlarging), tuple(left))


def check_same_kind(folder: Path, architecture: str, settings: Settings) -> None:
    """Raise `InputError` if the model in `folder` cannot be the start of such a network; reads config.json alone.

    Where architectures have the same network (SRResNet, SRGAN's generator), the settings that they share decide.
    """
    config, build = read_config(folder), find_architecture(architecture).build
    if find_architecture(config.architecture).build is not build:
        raise InputError(f"warm_start: {folder}: expected {architecture}, found {config.architecture}")
    ours, theirs = settings.model_dump(), config.architecture_settings(str(folder)).model_dump()
    alike = [one.settings.model_fields.keys() for one in ARCHITECTURES.values() if one.build is build]
    differences = [
        f"{key} {value}, found {theirs[key]}"
        for key, value in ours.items()
        if all(key in fields for fields in alike) and theirs[key] != value and key != "scales"  # what fits is taken
    ]
    if differences:
        raise InputError(f"warm_start: {folder}: its settings differ: expected {'; '.join(differences)}")


def load_encoder(network: nn.Module, folder: Path) -> dict[str, str]:
    """Give an `UnrolledLens` the trained encoder in `folder`; returns what the card says of it."""
    assert isinstance(network, UnrolledLens)
    trained = load_model(folder, torch.device("cpu"))
    network.encoder.load_state_dict(trained.network.state_dict())
    return {"model": trained.name, "sha256": file_sha256(folder / WEIGHTS_NAME)}


def _origins(old: nn.Module, new: nn.Module) -> dict[str, str | None]:
    """Each layer of `new`: the layer of `old` that does the same; None if it belongs to a pixel shuffle that is new."""
    origins: dict[str, str | None] = {name: name for name, _ in new.named_modules()}
    olds = dict(old.named_modules())
    for name, layers in new.named_modules():
        before = olds.get(name)
        if not isinstance(layers, nn.Sequential) or not isinstance(before, nn.Sequential):
            continue
        shuffles, known = (sum(isinstance(one, nn.PixelShuffle) for one in stack) for stack in (layers, before))
        if shuffles == known or known == 0:
            continue
        more = len(layers) - len(before)
        length = more // (shuffles - known)  # layers of one stage: convolution, shuffle and, in some, an activation
        for place in range(length * min(shuffles, known), len(layers)):
            origins[f"{name}.{place}"] = f"{name}.{place - more}" if place >= length * shuffles else None
    return origins


def _shuffle_factors(network: nn.Module) -> dict[str, int]:
    """The enlargement of each convolution that a pixel shuffle follows."""
    return {
        f"{name}.{place}": after.upscale_factor
        for name, layers in network.named_modules()
        if isinstance(layers, nn.Sequential)
        for place, after in enumerate(list(layers)[1:])
        if isinstance(after, nn.PixelShuffle)
    }


def _stride(module: nn.Module) -> int | tuple[int, ...] | None:
    """The enlargement of a transposed convolution, whose kernel means something else at another one."""
    if isinstance(module, GroupUpsampling):
        return module.scale
    return module.stride if isinstance(module, nn.ConvTranspose2d) else None


def _unchanging(module: nn.Module, name: str) -> Tensor | None:
    """The weight or bias with which a convolution (of as many features as it is given) or a PReLU does nothing."""
    if isinstance(module, nn.Conv2d):
        features = module.in_channels
        if name == "bias":
            return torch.zeros(features)
        return nn.init.dirac_(torch.empty(features, features, *module.kernel_size))
    return torch.ones(module.num_parameters) if isinstance(module, nn.PReLU) else None


def _enlarged(values: Tensor, old_factor: int, factor: int) -> Tensor:
    """Weight or bias (F*old², ...) of a convolution before a shuffle -> (F*factor², ...): each HR pixel the nearest."""
    nearest = ((torch.arange(factor) + 0.5) * old_factor / factor).long()
    return values.unflatten(0, (-1, old_factor, old_factor))[:, nearest][:, :, nearest].flatten(0, 2)
