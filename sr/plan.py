"""What the stage `train` is to do: its settings, checked against the data, and which of it is done already."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from simulate.errors import InputError
from simulate.settings import Settings
from simulate.shards import Pairs, file_sha256

from .adversarial import AdversarialSettings
from .checkpoint import CHECKPOINT_NAME, load_checkpoint
from .content import ContentSettings
from .degradation import served_scales
from .model_folder import CONFIG_NAME, WEIGHTS_NAME, read_config
from .models import Architecture, build_network, find_architecture, find_submodules, resolve_settings
from .models.unrolled_lens import UnrolledLens
from .on_the_fly import OnTheFlySettings
from .schedule import LargePatchSettings, LoopSettings
from .stages import METRICS_NAME, fingerprint, finished_metrics, read_metrics
from .warm_start import check_same_kind

INTERPOLATIONS = ("bilinear", "bicubic")


class ModelSettings(Settings):
    """One model to train."""

    architecture: str
    size: str = "small"
    settings: dict[str, Any] = Field(
        default_factory=dict
    )  # of the architecture, where they differ from those of the size
    name: str | None = None  # of the model and its folder; the architecture's name if not given
    steps: int | None = Field(None, ge=1)  # in place of the section's
    learning_rate: float | None = Field(None, gt=0)
    large_patch: LargePatchSettings | None = None
    warm_start: Path | None = None
    """Folder of a trained model of this architecture, of any scale, to start from."""
    trainable: tuple[str, ...] | None = Field(None, min_length=1)
    """Submodules that learn while all others are frozen; None: all."""
    encoder: str | None = None
    """Name of the run's `lens_encoder` that an `unrolled_lens` starts from, listed before it or trained already."""

    @property
    def folder_name(self) -> str:
        return self.name or self.architecture


class TrainSettings(LoopSettings):
    """The section `train`: the loop's settings, for all models, and the models."""

    models: tuple[ModelSettings, ...] = tuple(
        ModelSettings(architecture=name) for name in ("fsrcnn", "srresnet", "rcan", "srgan")
    )
    target: Literal["hr", "hr_noisy"] = "hr"
    data: Literal["stored", "on-the-fly"] = "stored"
    """On the fly: new lenses are simulated while training goes on; the stored ones validate and normalise."""
    on_the_fly: OnTheFlySettings = OnTheFlySettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    content: ContentSettings = ContentSettings()


@dataclass(frozen=True)
class Plan:
    """A model to train, checked."""

    name: str
    architecture: Architecture
    settings: Settings
    loop: LoopSettings
    warm_start: Path | None
    trainable: tuple[str, ...] | None
    scales: tuple[int, ...]
    """That the network is to serve: the data's, and some that divide it."""
    encoder: str | None
    identity: str


def plan_models(
    settings: TrainSettings, train: Pairs, val: Pairs, data_sha256: str, seed: int, folder: Path | None = None
) -> list[Plan]:
    """Check the settings of all models against the data, and against encoders that are trained in `folder` already
    (None: there are none).

    Raises `InputError` that says which model is wrong.
    """
    loop = LoopSettings(**{name: getattr(settings, name) for name in LoopSettings.model_fields})
    own_psfs_on_the_fly = settings.data == "on-the-fly" and train.lr_band.psf.ndim == 3
    if own_psfs_on_the_fly and "data_consistency" in settings.loss:
        raise InputError("train.loss: data_consistency needs data: stored where each pair has a PSF of its own")
    plans: list[Plan] = []
    for position, model in enumerate(settings.models):
        where, name = f"train.models.{position}", model.folder_name
        architecture = find_architecture(model.architecture)
        if not architecture.trainable:
            raise InputError(f"{where}: {model.architecture} has nothing to train; it is in every table anyway")
        if own_psfs_on_the_fly and architecture.knows_degradation:
            raise InputError(f"{where}: {name} needs data: stored where each pair has a PSF of its own")
        if not re.fullmatch(r"[\w][\w.-]*", name) or name in INTERPOLATIONS or name == METRICS_NAME:
            raise InputError(f"{where}.name: {name!r} cannot be the name of a model's folder; use letters and digits")
        if name in (plan.name for plan in plans):
            raise InputError(f"{where}: a second model is called {name!r}; give one of them another name")
        network_settings = resolve_settings(model.architecture, model.size, model.settings)
        try:
            with torch.device("meta"):  # fails for a scale the network cannot do, without making its weights
                network = build_network(model.architecture, network_settings, train.scale, train.lr.shape[1])
        except InputError as error:
            raise InputError(f"{where}: {error}; the data are of x{train.scale}") from None
        scales = served_scales(network, train.scale)
        if train.scale != max(scales):
            raise InputError(
                f"{where}: {name} is to serve x{max(scales)}, the data are of x{train.scale}; simulate x{max(scales)}"
            )
        if len(scales) > 1 and "data_consistency" in settings.loss:
            raise InputError(
                f"{where}: {name} learns several scales, and the loss data_consistency is of one; leave it out"
            )
        try:
            find_submodules(network, model.trainable or ())
        except InputError as error:
            raise InputError(f"{where}.trainable: {error}") from None
        overrides = {"steps": model.steps, "learning_rate": model.learning_rate, "large_patch": model.large_patch}
        own = loop.model_copy(update={key: value for key, value in overrides.items() if value is not None})
        own = own.model_copy(update={"crop_size": architecture.crop_size(own.crop_size)})
        _check_crops(where, own, train, val)
        if architecture.adversarial and (own.large_patch or own.accumulate > 1):
            raise InputError(
                f"{where}: {model.architecture} learns against a discriminator of one crop size, from whole batches; "
                "train it without large_patch and accumulate"
            )
        more = {
            "architecture": model.architecture,
            "network": json.dumps(network_settings.model_dump(mode="json")),
            "target": settings.target,
            "adversarial": settings.adversarial.model_dump_json() if architecture.adversarial else "",
        }
        if settings.data == "on-the-fly":
            more["on_the_fly"] = settings.on_the_fly.model_dump_json()
        if "content" in settings.loss:
            more["content"] = settings.content.model_dump_json()
        if model.warm_start:
            check_same_kind(model.warm_start, model.architecture, network_settings)
            more["warm_start"] = file_sha256(model.warm_start / WEIGHTS_NAME)
        if model.trainable:
            more["trainable"] = json.dumps(model.trainable)
        if encoder := _encoder_identity(where, model, network, settings, plans, folder, data_sha256):
            more["encoder"] = encoder
        same_result = own.model_copy(update={"log_interval": 1, "checkpoint_interval": 1, "compile": False})
        identity = fingerprint(same_result, data=data_sha256, seed=seed, **more)
        start, trainable = model.warm_start, model.trainable
        plan = Plan(name, architecture, network_settings, own, start, trainable, scales, model.encoder, identity)
        plans.append(plan)
    if not plans:
        raise InputError("train.models: expected at least one model, found none")
    return plans


def _encoder_identity(
    where: str,
    model: ModelSettings,
    network: nn.Module,
    settings: TrainSettings,
    plans: list[Plan],
    folder: Path | None,
    data_sha256: str,
) -> str | None:
    """What the encoder that `network` starts from is the result of; None if it starts from none.

    Raises `InputError` if the encoder is missing or another than the network has to have.
    """
    if not isinstance(network, UnrolledLens):
        if model.encoder:
            raise InputError(f"{where}.encoder: {model.architecture} starts from no lens; leave it out")
        return None
    name = model.folder_name
    if not model.encoder:
        raise InputError(f"{where}.encoder: expected the name of a model of architecture lens_encoder, found none")
    if settings.data == "on-the-fly":
        raise InputError(f"{where}: {name} needs data: stored, to fit lenses to once")
    if any(part.split(".")[0] == "encoder" for part in model.trainable or ()):
        raise InputError(f"{where}.trainable: the encoder of {name} learns nothing here; train {model.encoder}")
    planned = {plan.name: plan for plan in plans}.get(model.encoder)
    trained = folder / model.encoder if folder else None
    if planned:
        found: tuple[str, Any, str | None] = (planned.architecture.name, planned.settings, data_sha256)
        identity = planned.identity
    elif model.encoder in (one.folder_name for one in settings.models):
        raise InputError(f"{where}.encoder: {name} starts from {model.encoder}; list that before it")
    elif trained and (trained / METRICS_NAME).is_file():
        config = read_config(trained)
        found = (config.architecture, config.architecture_settings(str(trained)), config.data_sha256)
        identity = str(read_metrics(trained)["fingerprint"])
    else:
        raise InputError(
            f"{where}.encoder: {name} starts from {model.encoder}, which is not in {folder}; list it before, or train "
            "it first"
        )
    expected = ("lens_encoder", network.encoder.settings, data_sha256)
    for what, one, other in zip(("a model of architecture", "the settings", "the data"), expected, found, strict=True):
        if one != other:
            raise InputError(f"{where}.encoder: {model.encoder}: expected {what} {one}, found {other}")
    return identity


def _check_crops(where: str, loop: LoopSettings, train: Pairs, val: Pairs) -> None:
    smallest = min(*train.lr.shape[-2:], *val.lr.shape[-2:])
    crops = {"train.crop_size": loop.crop_size}
    if loop.large_patch:
        crops[f"{where}: large_patch.crop_size"] = loop.large_patch.crop_size
    for key, crop_size in crops.items():
        if crop_size is not None and crop_size > smallest:
            raise InputError(
                f"{key}: expected at most {smallest}, the size of the LR images in pixels, "
                f"found {crop_size} (null trains on whole images)"
            )


def check_folder(folder: Path, identity: str | None, resume: bool) -> None:
    """Make way in a folder: empty it if not `resume`, else raise `InputError` if it holds the work of another model."""
    if not resume:
        if folder.exists():
            shutil.rmtree(folder)
        return
    found = None
    if (folder / METRICS_NAME).is_file():
        found = read_metrics(folder).get("fingerprint")
    elif (folder / CHECKPOINT_NAME).is_file():
        found = load_checkpoint(folder / CHECKPOINT_NAME)[1]["identity"]
    if found not in (None, identity):
        raise InputError(
            f"{folder}: holds a model of other settings, data or seed; "
            f"use --fresh to train it again, or another --out to keep both"
        )


def finished_model(folder: Path, identity: str, resume: bool) -> dict[str, Any] | None:
    """The metrics of a model that is finished and whole; None if it is still to be trained."""
    whole = all((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME))
    return finished_metrics(folder, identity, resume) if whole else None
