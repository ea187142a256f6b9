"""The super-resolution networks: an explicit registry, one file an architecture.

A network maps normalised surface brightness (B,C,h,w) to (B,C,scale*h,scale*w), float32. Trainable ones have an
attribute `upsampling` (the layers that upsample and reconstruct); all other parameters are its "features". Those with
`knows_degradation` are called with an `sr.degradation.Degradation` beside the image.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from simulate.errors import InputError
from simulate.settings import Settings, parse_settings

from .edsr import Edsr, EdsrSettings
from .flow import Flow, FlowSettings
from .fsrcnn import Fsrcnn, FsrcnnSettings
from .fsrcnn_equivariant import EquivariantFsrcnn, EquivariantFsrcnnSettings
from .fsrcnn_hybrid import HybridFsrcnn, HybridFsrcnnSettings
from .interpolation import InterpolationSettings, build_bicubic, build_bilinear
from .lens_encoder import LensEncoder, LensEncoderSettings
from .rcan import Rcan, RcanSettings
from .rdn import Rdn, RdnSettings
from .srcnn import Srcnn, SrcnnSettings
from .srgan import SrganSettings
from .srresnet import Srresnet, SrresnetSettings
from .swinir import Swinir, SwinirSettings
from .unrolled import Unrolled, UnrolledSettings
from .unrolled_lens import UnrolledLens, UnrolledLensSettings

SCALES = (2, 3, 4, 8)
SMALL_ENCODER = LensEncoderSettings(features=32, hidden=256)


@dataclass(frozen=True)
class Architecture:
    """One kind of network: its settings, the sizes it comes in, and how to build it."""

    name: str
    paper: str
    settings: type[Settings]
    sizes: Mapping[str, Settings]
    """From "full", the paper's, to "small", for CPUs; the interpolations have only "full"."""
    build: Callable[[Any, int, int], nn.Module]
    """(settings, scale, channels) -> network."""
    adversarial: bool = False
    """The network is trained against a discriminator, after a warm start."""
    trainable: bool = True

    @property
    def knows_degradation(self) -> bool:
        """Whether the network is called with an `sr.degradation.Degradation` beside the LR image."""
        return getattr(self.build, "knows_degradation", False)

    @property
    def unsupervised(self) -> bool:
        """Whether no HR image has a part in its training: its loss is its own, and the last weights are kept."""
        return getattr(self.build, "unsupervised", False)

    @property
    def whole_images(self) -> bool:
        """Whether it makes no sense of a part of an image."""
        return getattr(self.build, "whole_images", False)

    @property
    def guesses_from_whole_images(self) -> bool:
        """Whether what it makes of whole images can be cropped (`Unrolled.guess`), so that it learns from crops."""
        return getattr(self.build, "guesses_from_whole_images", False)

    def crop_size(self, asked: int | None) -> int | None:
        """Of its training, if `asked` for crops of that size: None, whole images, if it could not learn from crops."""
        return None if self.whole_images and not self.guesses_from_whole_images else asked


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="bilinear",
            paper="linear interpolation",
            settings=InterpolationSettings,
            sizes={"full": InterpolationSettings()},
            build=build_bilinear,
            trainable=False,
        ),
        Architecture(
            name="bicubic",
            paper="Keys 1981, IEEE TASSP 29, 1153",
            settings=InterpolationSettings,
            sizes={"full": InterpolationSettings()},
            build=build_bicubic,
            trainable=False,
        ),
        Architecture(
            name="srcnn",
            paper="Dong et al. 2014, arXiv:1501.00092",
            settings=SrcnnSettings,
            sizes={"full": SrcnnSettings(), "small": SrcnnSettings(mapping_kernel=1)},
            build=Srcnn,
        ),
        Architecture(
            name="fsrcnn",
            paper="Dong, Loy & Tang 2016, arXiv:1608.00367",
            settings=FsrcnnSettings,
            sizes={
                "full": FsrcnnSettings(),
                "small": FsrcnnSettings(features=32, shrunk_features=8, mapping_layers=2),
            },
            build=Fsrcnn,
        ),
        Architecture(
            name="fsrcnn_equivariant",
            paper="FSRCNN with the D4 layers of Cohen & Welling 2016, arXiv:1602.07576",
            settings=EquivariantFsrcnnSettings,
            sizes={
                "full": EquivariantFsrcnnSettings(),
                "small": EquivariantFsrcnnSettings(fields=16, shrunk_fields=4, mapping_layers=2),
            },
            build=EquivariantFsrcnn,
        ),
        Architecture(
            name="fsrcnn_hybrid",
            paper="features of fsrcnn_equivariant, upsampling of FSRCNN",
            settings=HybridFsrcnnSettings,
            sizes={
                "full": HybridFsrcnnSettings(),
                "small": HybridFsrcnnSettings(fields=5, shrunk_fields=3, mapping_layers=2),
            },
            build=HybridFsrcnn,
        ),
        Architecture(
            name="srresnet",
            paper="Ledig et al. 2017, arXiv:1609.04802",
            settings=SrresnetSettings,
            sizes={
                "full": SrresnetSettings(),
                "deep": SrresnetSettings(blocks=18),
                "small": SrresnetSettings(blocks=6, features=32),
            },
            build=Srresnet,
        ),
        Architecture(
            name="edsr",
            paper="Lim et al. 2017, arXiv:1707.02921",
            settings=EdsrSettings,
            sizes={
                "full": EdsrSettings(),
                "baseline": EdsrSettings(blocks=16, features=64, residual_scale=1),
                "small": EdsrSettings(blocks=12, features=32, residual_scale=1),
            },
            build=Edsr,
        ),
        Architecture(
            name="rdn",
            paper="Zhang et al. 2018, arXiv:1802.08797",
            settings=RdnSettings,
            sizes={"full": RdnSettings(), "small": RdnSettings(blocks=4, layers=4, growth=16, features=32)},
            build=Rdn,
        ),
        Architecture(
            name="rcan",
            paper="Zhang et al. 2018, arXiv:1807.02758",
            settings=RcanSettings,
            sizes={
                "full": RcanSettings(),
                "compact": RcanSettings(groups=5, blocks=10),
                "small": RcanSettings(groups=3, blocks=4, features=32, reduction=8),
            },
            build=Rcan,
        ),
        Architecture(
            name="swinir",
            paper="SwinIR-light: Liang et al. 2021, arXiv:2108.10257",
            settings=SwinirSettings,
            sizes={"full": SwinirSettings(), "small": SwinirSettings(groups=2, layers=2, features=32, heads=4)},
            build=Swinir,
        ),
        Architecture(
            name="srgan",
            paper="Ledig et al. 2017, arXiv:1609.04802",
            settings=SrganSettings,
            sizes={
                "full": SrganSettings(),
                "small": SrganSettings(blocks=6, features=32, discriminator_features=16, discriminator_dense=128),
            },
            build=Srresnet,
            adversarial=True,
        ),
        Architecture(
            name="flow",
            paper="flow matching: Lipman et al. 2023, arXiv:2210.02747",
            settings=FlowSettings,
            sizes={"full": FlowSettings(), "small": FlowSettings(blocks=6, features=48)},
            build=Flow,
        ),
        Architecture(
            name="unrolled",
            paper="ours, after recurrent inference machines: Putzke & Welling 2017, arXiv:1706.04008",
            settings=UnrolledSettings,
            sizes={
                "full": UnrolledSettings(),
                "medium": UnrolledSettings(blocks=3, fields=6),
                "small": UnrolledSettings(steps=5, blocks=2, fields=4),
            },
            build=Unrolled,
        ),
        Architecture(
            name="lens_encoder",
            paper="ours, unsupervised, after Aragon-Calvo & Carvajal 2020, arXiv:1907.03957",
            settings=LensEncoderSettings,
            sizes={"full": LensEncoderSettings(), "small": SMALL_ENCODER},
            build=LensEncoder,
        ),
        Architecture(
            name="unrolled_lens",
            paper="ours: the answer of lens_encoder, corrected by unrolled",
            settings=UnrolledLensSettings,
            sizes={
                "full": UnrolledLensSettings(),
                "medium": UnrolledLensSettings(blocks=3, fields=6, encoder=SMALL_ENCODER),
                "small": UnrolledLensSettings(steps=5, blocks=2, fields=4, encoder=SMALL_ENCODER),
            },
            build=UnrolledLens,
        ),
    )
}


def find_architecture(name: str) -> Architecture:
    """The registry's entry. Raises `InputError`, with the nearest known name, if there is none."""
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown architecture {name!r}: {hint}known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def resolve_settings(name: str, size: str = "small", overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a size with some of them changed, nested ones one by one.

    Raises `InputError` for an unknown name, size, key or value.
    """
    architecture = find_architecture(name)
    if size not in architecture.sizes:
        raise InputError(f"{name} has no size {size!r}; its sizes are {', '.join(architecture.sizes)}")
    content = architecture.sizes[size].model_dump()
    for key, value in (overrides or {}).items():
        nested = isinstance(value, Mapping) and isinstance(content.get(key), dict)
        content[key] = {**content[key], **value} if nested else value
    return parse_settings(architecture.settings, content, f"settings of {name}")


def build_network(name: str, settings: Settings, scale: int, channels: int = 1) -> nn.Module:
    """A freshly initialised network. Raises `InputError` if there is no such network or it cannot do this scale."""
    architecture = find_architecture(name)
    if scale not in SCALES:
        raise InputError(f"{name}: the scale is {scale}, expected one of {', '.join(map(str, SCALES))}")
    if not isinstance(settings, architecture.settings):
        raise TypeError(f"{name} needs {architecture.settings.__name__}, not {type(settings).__name__}")
    return architecture.build(settings, scale, channels)


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def find_submodules(network: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    """Submodules by name ("upsampling", "body.layers.2"). Raises `InputError` if one does not exist or cannot learn."""
    known = {name: module for name, module in network.named_modules() if name and list(module.parameters())}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            parts = ", ".join(part for part in known if "." not in part)
            raise InputError(f"no layers called {name!r} can learn: {hint}the parts of this network are {parts}")
    return [known[name] for name in names]


def freeze_features(network: nn.Module, trainable: tuple[str, ...] = ("upsampling",)) -> None:
    """Let only the submodules called `trainable` learn. Batch statistics of the others are frozen too.

    Raises `InputError` as `find_submodules`.
    """
    chosen = find_submodules(network, trainable)
    network.requires_grad_(False)
    for module in chosen:
        module.requires_grad_(True)
    network.train(network.training)


def unfreeze(network: nn.Module) -> None:
    """Undo `freeze_features`."""
    network.requires_grad_(True)
    network.train(network.training)
