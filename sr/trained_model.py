"""A trained model: a network and what it needs to be used on flux images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from simulate.errors import InputError
from simulate.settings import Settings, parse_settings
from simulate.shards import Pairs

from .degradation import Degradation, UsualKernel, knows_degradation
from .domain import SeenRange
from .models import build_network, find_architecture, resolve_settings
from .normalisation import Normalisation, as_tensor
from .operators import ForwardOperator, matching_kernels
from .predicted_variance import predicts_sigma
from .self_ensemble import mean_over_symmetries


class ModelConfig(Settings):
    """The `config.json` of a model folder: everything needed to rebuild the network and to use it rightly."""

    format: Literal["sharplens-model"] = "sharplens-model"
    format_version: Literal[1] = 1
    architecture: str
    settings: dict[str, Any]  # of the architecture's own settings class
    scale: int
    channels: int = 1
    unit: str  # of the flux the model was trained on
    normalisation_factor: float
    target: Literal["hr", "hr_noisy"] = "hr"
    lr_instrument: str
    lr_pixel_scale_arcsec: float
    hr_instrument: str
    hr_pixel_scale_arcsec: float
    data_sha256: str | None = None  # of the training data's manifest; None for interpolation, which is not trained
    training: dict[str, Any] = Field(
        default_factory=dict
    )  # what was done: steps, rates, seed, which weights were kept, ...
    training_range: SeenRange | None = None  # `sr.domain.seen_range` of the training data
    scores: dict[str, Any] = Field(default_factory=dict)  # what `save_model` was given

    @property
    def scales(self) -> tuple[int, ...]:
        """That the network serves (`TrainedModel.at_scale`); `scale` is the one that all else here is of."""
        return tuple(sorted(set(self.settings.get("scales", ()) or (self.scale,))))

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.normalisation_factor, self.scale)

    def architecture_settings(self, source: str = "model") -> Settings:
        """Settings of the network. Raises `InputError` that names `source` if they are not the architecture's."""
        kind = find_architecture(self.architecture).settings
        return parse_settings(kind, self.settings, f"{source}: settings")


@dataclass
class TrainedModel:
    """A network and what it needs to be used on flux images."""

    name: str
    network: nn.Module
    config: ModelConfig
    kernel: UsualKernel | None = None
    """Of a network that knows the degradation."""

    @property
    def scales(self) -> tuple[int, ...]:
        """That it serves: `config.scale`, and others that it has learnt (a transferred one: none)."""
        return tuple(sorted((self.config.scale, *(self.kernel.others if self.kernel else ()))))

    def at_scale(self, scale: int) -> "TrainedModel":
        """The model for another of the scales that it serves. Raises `InputError` if it is none of them."""
        config = self.config
        if scale == config.scale:
            return self
        if self.kernel is None or scale not in self.kernel.others:
            served = " or ".join(map(str, self.scales))
            raise InputError(f"model {self.name}: expected a scale of {served}, found {scale}")
        pixel = config.hr_pixel_scale_arcsec * config.scale / scale
        config = config.model_copy(update={"scale": scale, "hr_pixel_scale_arcsec": pixel})
        return TrainedModel(self.name, self.network, config, self.kernel.at_scale(scale, pixel))

    def super_resolve(
        self,
        lr: np.ndarray,
        lr_noise: np.ndarray,
        device: torch.device,
        batch_size: int = 16,
        self_ensemble: bool = False,
        kernels: np.ndarray | None = None,
        usual_noise: float | None = None,
    ) -> np.ndarray:
        """(N,1,h,w) flux and 1-sigma noise per LR pixel -> (N,1,H,W) float32 flux per HR pixel.

        With `self_ensemble`, the mean over the 8 symmetries of the square. `kernels` (N,k,k), or (1,k,k) for all, are
        the images' own (`sr.operators.matching_kernels`), for a network that knows the degradation; None: `kernel`.
        `usual_noise` stands for each image's median noise: that of the image that they are tiles of.
        Raises `ValueError` that names the sample if an image is not finite or its noise has no positive median.
        """
        network = self.network.to(device).eval()
        answer = partial(mean_over_symmetries, network) if self_ensemble else network
        return self._answers(answer, lr, lr_noise, device, batch_size, kernels, usual_noise)

    def super_resolve_and_sigma(
        self,
        lr: np.ndarray,
        lr_noise: np.ndarray,
        device: torch.device,
        batch_size: int = 16,
        kernels: np.ndarray | None = None,
        usual_noise: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `super_resolve` gives, and the 1-sigma error that the network predicts of its pixels, of the same shape.

        Raises `InputError` if the network predicts none, `ValueError` as `super_resolve`.
        """
        network = self.network.to(device).eval()
        if not predicts_sigma(network):
            raise InputError(
                f"model {self.name}: {self.config.architecture} predicts no error, "
                "expected a network with the setting predict_sigma; train one"
            )

        def answer(network_lr: Tensor, *told: Degradation) -> Tensor:
            return torch.cat(network.mean_and_sigma(network_lr, *told), 1)

        both = self._answers(answer, lr, lr_noise, device, batch_size, kernels, usual_noise, planes=2)
        image, sigma = np.split(both, 2, axis=1)
        return image, sigma

    def predicted_sigma_of_pairs(self, pairs: Pairs, device: torch.device, batch_size: int = 16) -> np.ndarray:
        """The error that the network predicts of what `super_resolve_pairs` gives, (N,1,H,W)."""
        model, kernels = self.at_scale(pairs.scale), self._kernels_of(pairs)
        return model.super_resolve_and_sigma(pairs.lr, pairs.lr_noise, device, batch_size, kernels)[1]

    def _answers(
        self,
        answer: Callable[..., Tensor],
        lr: np.ndarray,
        lr_noise: np.ndarray,
        device: torch.device,
        batch_size: int,
        kernels: np.ndarray | None,
        usual_noise: float | None,
        planes: int = 1,
    ) -> np.ndarray:
        """`answer` to all images, (B,C,h,w) -> (B,planes*C,H,W) in the network's domain, as flux."""
        normalisation, scale = self.config.normalisation, self.config.scale
        height, width = lr.shape[-2:]
        result = np.empty((len(lr), planes * self.config.channels, height * scale, width * scale), np.float32)
        knows = knows_degradation(self.network)
        operator = ForwardOperator(self._kernels(kernels), scale).to(device, torch.float32) if knows else None
        for rows, network_lr, noise, amplitude in self._network_inputs(lr, lr_noise, device, batch_size, usual_noise):
            told = (Degradation(noise, operator.select(rows)),) if operator else ()
            with torch.inference_mode():
                result[rows] = normalisation.from_network_hr(answer(network_lr, *told), amplitude).cpu().numpy()
        return result

    def super_resolve_pairs(
        self, pairs: Pairs, device: torch.device, batch_size: int = 16, self_ensemble: bool = False
    ) -> np.ndarray:
        """`super_resolve` of the LR images of `pairs`, whose PSFs a network that knows the degradation is told."""
        model, kernels = self.at_scale(pairs.scale), self._kernels_of(pairs)
        return model.super_resolve(pairs.lr, pairs.lr_noise, device, batch_size, self_ensemble, kernels)

    def _kernels_of(self, pairs: Pairs) -> np.ndarray | None:
        return matching_kernels(pairs.hr_band, pairs.lr_band) if knows_degradation(self.network) else None

    def _kernels(self, given: np.ndarray | None) -> np.ndarray:
        if given is not None:
            return given
        if self.kernel is None:
            raise ValueError(f"model {self.name}: no kernels were given, and it has none of its own")
        return self.kernel.kernel[None]

    def sample(
        self,
        lr: np.ndarray,
        lr_noise: np.ndarray,
        count: int,
        seed: int,
        device: torch.device,
        steps: int = 8,
        batch_size: int = 16,
        start: np.ndarray | None = None,
        usual_noise: float | None = None,
    ) -> np.ndarray:
        """(N,1,h,w) flux and 1-sigma noise per LR pixel -> `count` posterior draws an image, (N,count,H,W) f4 flux.

        Draw i of image n starts from noise that depends on (seed, n, i) alone, or from `start` (N,count,H,W), standard
        normal; `steps` are those of the network, `usual_noise` is that of `super_resolve`.
        Raises `InputError` if the network cannot draw samples, `ValueError` as `super_resolve`.
        """
        draw = getattr(self.network.to(device).eval(), "sample", None)
        if draw is None:
            raise InputError(
                f"model {self.name}: {self.config.architecture} gives one answer an image, "
                f"expected a network that draws posterior samples; train a model of architecture 'flow'"
            )
        normalisation, scale = self.config.normalisation, self.config.scale
        height, width = (scale * size for size in lr.shape[-2:])
        result = np.empty((len(lr), count, height, width), np.float32)
        size = max(1, batch_size // count)
        for rows, network_lr, _, amplitude in self._network_inputs(lr, lr_noise, device, size, usual_noise):
            numbers = [(image, one) for image in range(rows.start, rows.stop) for one in range(count)]
            repeated = network_lr.repeat_interleave(count, dim=0)
            outputs = []
            with torch.inference_mode():
                for first in range(0, len(numbers), batch_size):
                    part = slice(first, first + batch_size)
                    if start is None:
                        noise = torch.stack([_noise(seed, *number, (1, height, width)) for number in numbers[part]])
                    else:
                        noise = torch.from_numpy(np.stack([start[number][None] for number in numbers[part]]))
                    outputs.append(draw(repeated[part], noise.to(device), steps))
                draws = torch.cat(outputs).view(len(network_lr), count, height, width)
                result[rows] = normalisation.from_network_hr(draws, amplitude).cpu().numpy()
        return result

    def _network_inputs(
        self,
        lr: np.ndarray,
        lr_noise: np.ndarray,
        device: torch.device,
        batch_size: int,
        usual_noise: float | None = None,
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, network input and its noise (B,C,h,w), and amplitude (B,1,1,1) of one batch after another; checks."""
        if lr.ndim != 4 or lr.shape != lr_noise.shape or lr.shape[1] != self.config.channels:
            expected = f"(N,{self.config.channels},h,w)"
            raise ValueError(f"lr and lr_noise: expected one shape {expected}, found {lr.shape} and {lr_noise.shape}")
        normalisation = self.config.normalisation
        for first in range(0, len(lr), batch_size):
            rows = slice(first, min(first + batch_size, len(lr)))
            flux, noise = as_tensor(lr[rows], device), as_tensor(lr_noise[rows], device)
            amplitude = normalisation.amplitude(
                noise if usual_noise is None else noise.new_full(noise.shape, usual_noise)
            )
            usable = flux.isfinite().all((1, 2, 3)) & noise.isfinite().all((1, 2, 3)) & (amplitude > 0).all((1, 2, 3))
            if not usable.all():
                bad = first + int(usable.int().argmin())
                raise ValueError(f"sample {bad}: lr and lr_noise must be finite and the median noise positive")
            network_lr, network_noise = (normalisation.to_network_lr(one, amplitude) for one in (flux, noise))
            yield rows, network_lr, network_noise, amplitude


def _noise(seed: int, image: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise that a posterior draw starts from, drawn on the CPU whatever the device."""
    state = np.random.SeedSequence((seed, image, draw)).generate_state(1, np.uint64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state[0])))


def interpolation_model(name: str, pairs: Pairs) -> TrainedModel:
    """The baseline "bilinear" or "bicubic" for `pairs`: a model without parameters."""
    if find_architecture(name).trainable:
        raise ValueError(f"{name!r} is not an interpolation")
    settings = resolve_settings(name, "full")
    config = describe_model(name, settings, pairs, Normalisation(1.0, pairs.scale))  # linear: any factor does
    return TrainedModel(name, build_network(name, settings, pairs.scale, pairs.lr.shape[1]), config)


def describe_model(
    architecture: str, settings: Settings, pairs: Pairs, normalisation: Normalisation, **more: Any
) -> ModelConfig:
    """The configuration of a model for data like `pairs`; `more` are further fields of `ModelConfig`."""
    return ModelConfig(
        architecture=architecture,
        settings=settings.model_dump(mode="json"),
        scale=pairs.scale,
        channels=pairs.lr.shape[1],
        unit=pairs.unit,
        normalisation_factor=normalisation.factor,
        lr_instrument=pairs.lr_band.instrument,
        lr_pixel_scale_arcsec=pairs.lr_band.pixel_scale_arcsec,
        hr_instrument=pairs.hr_band.instrument,
        hr_pixel_scale_arcsec=pairs.hr_band.pixel_scale_arcsec,
        **more,
    )
