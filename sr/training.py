"""The stage `train`: which networks, on what data, and how well they do on the validation split."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from simulate.errors import InputError
from simulate.progress import progress_bar
from simulate.settings import Settings
from simulate.shards import Pairs, manifest_sha256, read_pairs

from .adversarial import AdversarialSettings, Adversary
from .checkpoint import CHECKPOINT_NAME, load_checkpoint
from .metrics import data_range_of, image_scores
from .models import Architecture, build_network, find_architecture, parameter_count, resolve_settings
from .models.srgan import Discriminator
from .normalisation import Normalisation, fit_normalisation
from .on_the_fly import OnTheFlySettings, open_pools, stored_simulation
from .samples import SampleSource, load_samples
from .stages import METRICS_NAME, fingerprint, finished_metrics, read_metrics, write_metrics
from .trained_model import CONFIG_NAME, WEIGHTS_NAME, TrainedModel, describe_model, interpolation_model, save_model
from .trainer import LoopSettings, Trainer

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


@dataclass(frozen=True)
class Plan:
    """A model to train, checked."""

    name: str
    architecture: Architecture
    settings: Settings
    loop: LoopSettings
    identity: str


@dataclass(frozen=True)
class TrainingData:
    """What all models of a run are trained and validated with."""

    train: Pairs
    val: Pairs
    new_samples: Callable[[], SampleSource]
    """Where one training takes its samples from."""
    normalisation: Normalisation
    data_range: float
    sha256: str


def train_run(
    run: Path, settings: TrainSettings, seed: int, device: torch.device, resume: bool, workers: int = 1
) -> dict[str, Any]:
    """Train all models of `settings` on RUN/data; each leaves RUN/train/<model>/, all together RUN/train/metrics.json.

    With `resume`, finished models are kept and a killed one goes on from its checkpoint, to the same weights bit for
    bit as if it had not been killed; without, all are trained anew. Raises `InputError`, before anything is trained,
    if a setting is wrong or a folder holds a model of other settings, data or seed. With `data: on-the-fly`, `workers`
    processes simulate; what comes out does not depend on how many.
    """
    folder = run / "train"
    train, val = read_pairs(run / "data", "train"), read_pairs(run / "data", "val")
    sha256 = manifest_sha256(run / "data")
    plans = plan_models(settings, train, val, sha256, seed)
    simulation = stored_simulation(run / "data") if settings.data == "on-the-fly" else None
    for plan in plans:
        check_folder(folder / plan.name, plan.identity, resume)
    finished = {plan.name: finished_model(folder / plan.name, plan.identity, resume) for plan in plans}
    identity = fingerprint(settings, data=sha256, seed=seed)
    stage = finished_metrics(folder, identity, resume)
    if stage is not None and all(finished.values()):
        return stage
    normalisation = fit_normalisation(train)
    data_range = data_range_of(train.hr, train.hr_mask)
    sources: AbstractContextManager[Callable[[], SampleSource]]
    if simulation:
        on_the_fly = settings.on_the_fly
        sources = open_pools(simulation, on_the_fly, len(train), normalisation, settings.target, device, workers)
    else:
        samples = load_samples(train, normalisation, settings.target, device)
        sources = nullcontext(lambda: samples)
    models = {}
    with sources as new_samples:
        data = TrainingData(train, val, new_samples, normalisation, data_range, sha256)
        baselines = {name: validation_scores(interpolation_model(name, val), data, device) for name in INTERPOLATIONS}
        for plan in plans:
            metrics = finished[plan.name]
            if metrics is None:
                metrics = train_model(folder / plan.name, plan, data, settings, seed, device)
            models[plan.name] = {key: value for key, value in metrics.items() if key != "fingerprint"}
    seconds = sum(model["seconds"] for model in models.values())
    content = {"models": models, "baselines": baselines, "data_range": data_range}
    return write_metrics(folder, identity, seconds, content)


def plan_models(settings: TrainSettings, train: Pairs, val: Pairs, data_sha256: str, seed: int) -> list[Plan]:
    """Check the settings of all models against the data. Raises `InputError` that says which model is wrong."""
    smallest = min(*train.lr.shape[-2:], *val.lr.shape[-2:])
    if settings.crop_size is not None and settings.crop_size > smallest:
        raise InputError(
            f"train.crop_size: expected at most {smallest}, the size of the LR images in pixels, "
            f"found {settings.crop_size} (null trains on whole images)"
        )
    loop = LoopSettings(**{name: getattr(settings, name) for name in LoopSettings.model_fields})
    plans: list[Plan] = []
    for position, model in enumerate(settings.models):
        where, name = f"train.models.{position}", model.folder_name
        architecture = find_architecture(model.architecture)
        if not architecture.trainable:
            raise InputError(f"{where}: {model.architecture} has nothing to train; it is in every table anyway")
        if not re.fullmatch(r"[\w][\w.-]*", name) or name in INTERPOLATIONS or name == METRICS_NAME:
            raise InputError(f"{where}.name: {name!r} cannot be the name of a model's folder; use letters and digits")
        if name in (plan.name for plan in plans):
            raise InputError(f"{where}: a second model is called {name!r}; give one of them another name")
        network_settings = resolve_settings(model.architecture, model.size, model.settings)
        with torch.device("meta"):  # fails for a scale the network cannot do, without making its weights
            build_network(model.architecture, network_settings, train.scale, train.lr.shape[1])
        overrides = {"steps": model.steps, "learning_rate": model.learning_rate}
        own = loop.model_copy(update={key: value for key, value in overrides.items() if value is not None})
        more = {
            "architecture": model.architecture,
            "network": json.dumps(network_settings.model_dump(mode="json")),
            "target": settings.target,
            "adversarial": settings.adversarial.model_dump_json() if architecture.adversarial else "",
        }
        if settings.data == "on-the-fly":
            more["on_the_fly"] = settings.on_the_fly.model_dump_json()
        same_result = own.model_copy(update={"log_interval": 1, "checkpoint_interval": 1})
        identity = fingerprint(same_result, data=data_sha256, seed=seed, **more)
        plans.append(Plan(name, architecture, network_settings, own, identity))
    if not plans:
        raise InputError("train.models: expected at least one model, found none")
    return plans


def check_folder(folder: Path, identity: str, resume: bool) -> None:
    """Make way in a model's folder: empty it if not `resume`, else raise `InputError` if it holds other work."""
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


def train_model(
    folder: Path, plan: Plan, data: TrainingData, settings: TrainSettings, seed: int, device: torch.device
) -> dict[str, Any]:
    """Train one model, write its folder, and return its metrics."""
    train, channels = data.train, data.train.lr.shape[1]
    own_seed = derive_seed(seed, plan.name)
    adversarial = plan.architecture.adversarial
    network = initial_network(plan.architecture.name, plan.settings, train.scale, channels, own_seed)
    adversary = None
    if adversarial:
        crop = plan.loop.crop_size or min(train.lr.shape[-2:])
        adversary = initial_adversary(plan, settings.adversarial, train.scale * crop, channels, own_seed, device)
    on_the_fly = settings.on_the_fly if settings.data == "on-the-fly" else None
    distinct_lenses, pool = len(train), {}
    if on_the_fly:
        distinct_lenses = on_the_fly.distinct_lenses(plan.loop.steps, len(train))
        pool = {**on_the_fly.model_dump(), "pool_size": on_the_fly.blocks(len(train)) * on_the_fly.block_size}
    training = {
        **plan.loop.model_dump(mode="json"),
        "data": settings.data,
        **pool,
        "distinct_lenses": distinct_lenses,
        **({"adversarial": settings.adversarial.model_dump(mode="json")} if adversarial else {}),
        "seed": seed,
        "kept_weights": "moving average at the last step" if adversarial else "moving average, best validation PSNR",
    }
    config = describe_model(
        plan.architecture.name,
        plan.settings,
        train,
        data.normalisation,
        target=settings.target,
        data_sha256=data.sha256,
        training=training,
    )

    def validate(candidate: nn.Module) -> dict[str, float]:
        return validation_scores(TrainedModel(plan.name, candidate, config), data, device)

    trainer = Trainer(network, data.new_samples(), plan.loop, own_seed, adversary)
    with progress_bar(f"train {plan.name}", plan.loop.steps) as advance:
        # the best PSNR of an adversarial training would be that of its warm start
        result = trainer.run(advance, validate, keep_best=not adversarial, folder=folder, identity=plan.identity)
    model = TrainedModel(plan.name, network, config)
    scores = validate(network)
    save_model(model, folder, {"validation": scores})
    content = {
        "architecture": plan.architecture.name,
        "parameters": parameter_count(network),
        "distinct_lenses": distinct_lenses,
        "best_step": result.kept_step,
        "validation": scores,
        "curve": [
            {key: row[key] for key in ("step", "loss", "psnr_db", "ssim")} for row in result.rows if "psnr_db" in row
        ],
    }
    metrics = write_metrics(folder, plan.identity, result.seconds, content)
    (folder / CHECKPOINT_NAME).unlink()
    return metrics


def validation_scores(model: TrainedModel, data: TrainingData, device: torch.device) -> dict[str, float]:
    """Mean PSNR and SSIM over the validation split, with the training split's data range."""
    prediction = model.super_resolve(data.val.lr, data.val.lr_noise, device)
    scores = image_scores(prediction, data.val, data.data_range)
    return {name: float(np.mean(scores[name])) for name in ("psnr_db", "ssim")}


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed of its own for each purpose, so that one training does not depend on which others a run has."""
    digest = hashlib.sha256(json.dumps([seed, *parts]).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def initial_network(architecture: str, settings: Settings, scale: int, channels: int, seed: int) -> nn.Module:
    """A freshly initialised network that depends on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(architecture, settings, scale, channels)


def initial_adversary(
    plan: Plan, settings: AdversarialSettings, hr_crop_size: int, channels: int, seed: int, device: torch.device
) -> Adversary:
    """A fresh discriminator for crops of `hr_crop_size` HR pixels; depends on `seed` alone."""
    sizes = plan.settings.model_dump()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        discriminator = Discriminator(
            hr_crop_size, channels, sizes["discriminator_features"], sizes["discriminator_dense"]
        )
    return Adversary(discriminator.to(device), settings, plan.loop.steps)
