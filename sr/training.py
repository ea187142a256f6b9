"""The stage `train`: the networks of a plan, trained on a run's data, and how well they do on the validation split."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from simulate.progress import progress_bar
from simulate.settings import Settings
from simulate.shards import Pairs, manifest_sha256, read_pairs

from .adversarial import AdversarialSettings, Adversary
from .checkpoint import CHECKPOINT_NAME
from .content import load_or_train_content_encoder
from .degradation import usual_kernel
from .domain import seen_range
from .first_guesses import FIRST_GUESSES_NAME
from .losses import LossContext, loss_context
from .metrics import data_range_of, image_scores
from .model_folder import save_model
from .models import build_network, freeze_features, parameter_count
from .models.srgan import Discriminator
from .normalisation import Normalisation, fit_normalisation
from .on_the_fly import open_pools, stored_simulation
from .operators import forward_operator
from .plan import INTERPOLATIONS, Plan, TrainSettings, check_folder, finished_model, plan_models
from .processes import average_gradients, process_rank, wait_for_all
from .samples import SampleSource, load_samples
from .stages import fingerprint, finished_metrics, read_metrics, write_metrics
from .trained_model import TrainedModel, describe_model, interpolation_model
from .trainer import OutOfTimeError, Trainer
from .warm_start import load_encoder, warm_start

CONTENT_FOLDER = ".content"  # no name of a model's folder begins with a dot


@dataclass(frozen=True)
class TrainingData:
    """What all models of a run are trained and validated with."""

    train: Pairs
    val: Pairs
    new_samples: Callable[[], SampleSource]
    """Where one training takes its samples from."""
    normalisation: Normalisation
    data_ranges: dict[int, float]
    """By scale, of all that are asked for."""
    context: LossContext
    sha256: str


def train_run(
    run: Path,
    settings: TrainSettings,
    seed: int,
    device: torch.device,
    resume: bool,
    workers: int = 1,
    deadline: float = math.inf,
) -> dict[str, Any]:
    """Train all models of `settings` on RUN/data; each leaves RUN/train/<model>/, all together RUN/train/metrics.json.

    With `resume`, finished models are kept and a killed one goes on from its checkpoint, to the same weights bit for
    bit as if it had not been killed; without, all are trained anew. Raises `InputError`, before anything is trained,
    if a setting is wrong or a folder holds a model of other settings, data or seed, and `OutOfTimeError` after
    `deadline` (of `time.monotonic`), from where a later call goes on. With `data: on-the-fly`, `workers` processes
    simulate; what comes out does not depend on how many. In several processes (`sr.processes`), all call this.
    """
    folder = run / "train"
    train, val = read_pairs(run / "data", "train"), read_pairs(run / "data", "val")
    sha256 = manifest_sha256(run / "data")
    plans = plan_models(settings, train, val, sha256, seed, folder)
    simulation = stored_simulation(run / "data") if settings.data == "on-the-fly" else None
    if process_rank() == 0:
        for name, identity in [(CONTENT_FOLDER, None), *((plan.name, plan.identity) for plan in plans)]:
            check_folder(folder / name, identity, resume)
    wait_for_all()
    finished = {plan.name: finished_model(folder / plan.name, plan.identity, resume) for plan in plans}
    identity = fingerprint(settings, data=sha256, seed=seed)
    stage = finished_metrics(folder, identity, resume)
    if stage is not None and all(finished.values()):
        return stage
    normalisation = fit_normalisation(train)
    scales = {train.scale, *(scale for plan in plans for scale in plan.scales)}
    data_ranges = {scale: _data_range(train.at_scale(scale)) for scale in scales}
    sources: AbstractContextManager[Callable[[], SampleSource]]
    if simulation:
        on_the_fly = settings.on_the_fly
        sources = open_pools(simulation, on_the_fly, len(train), normalisation, settings.target, device, workers)
    else:
        samples = load_samples(train, normalisation, settings.target, device)
        sources = nullcontext(lambda: samples)
    models = {}
    with sources as new_samples:
        knows = any(plan.architecture.knows_degradation for plan in plans)
        context = loss_context(settings.loss, train, normalisation, settings.target, device, knows)
        if "content" in settings.loss:
            context = _with_content(context, folder / CONTENT_FOLDER, new_samples(), settings, sha256, seed)
        data = TrainingData(train, val, new_samples, normalisation, data_ranges, context, sha256)
        baselines = {name: validation_scores(interpolation_model(name, val), data, device) for name in INTERPOLATIONS}
        for plan in plans:
            metrics = finished[plan.name]
            if metrics is None:
                metrics = train_model(folder / plan.name, plan, data, settings, seed, device, deadline)
            models[plan.name] = {key: value for key, value in metrics.items() if key != "fingerprint"}
    seconds = sum(model["seconds"] for model in models.values())
    content = {"models": models, "baselines": baselines, "data_range": data_ranges[train.scale]}
    return write_metrics(folder, identity, seconds, content) if process_rank() == 0 else content


def train_model(
    folder: Path,
    plan: Plan,
    data: TrainingData,
    settings: TrainSettings,
    seed: int,
    device: torch.device,
    deadline: float = math.inf,
) -> dict[str, Any]:
    """Train one model, write its folder, and return its metrics. Raises as `train_run`."""
    train, channels = data.train, data.train.lr.shape[1]
    own_seed = derive_seed(seed, plan.name)
    network = initial_network(plan.architecture.name, plan.settings, train.scale, channels, own_seed)
    training = describe_training(plan, settings, len(train), seed)
    if plan.warm_start:
        start = warm_start(network, plan.warm_start, plan.architecture.name, plan.settings)
        training["warm_start"] = start.summary()
    if plan.encoder:
        training["encoder"] = load_encoder(network, folder.parent / plan.encoder)
    if plan.trainable:
        freeze_features(network, plan.trainable)
    adversary = None
    if plan.architecture.adversarial:
        crop = plan.loop.crop_size or min(train.lr.shape[-2:])
        adversary = initial_adversary(plan, settings.adversarial, train.scale * crop, channels, own_seed, device)
    config = describe_model(
        plan.architecture.name,
        plan.settings,
        train,
        data.normalisation,
        target=settings.target,
        data_sha256=data.sha256,
        training=training,
        training_range=seen_range(train),
    )
    kernel = usual_kernel(network, train)

    def validate(candidate: nn.Module) -> dict[str, float]:
        return validation_scores(TrainedModel(plan.name, candidate, config, kernel), data, device)

    coarser = {
        scale: forward_operator(train, scale).to(device, torch.float32) for scale in plan.scales if scale != train.scale
    }
    trainer = Trainer(network, data.new_samples(), plan.loop, own_seed, adversary, data.context, coarser)
    unsupervised = plan.architecture.unsupervised
    # the best PSNR of an adversarial training would be that of its warm start; unsupervised, HR images choose nothing
    keep_best = adversary is None and not unsupervised
    with progress_bar(f"train {plan.name}", plan.loop.total_steps, process_rank() == 0) as advance:
        try:
            if time.monotonic() > deadline:
                raise OutOfTimeError("out of time before it went on")
            scored = None if unsupervised else validate
            result = trainer.run(advance, scored, keep_best, folder, plan.identity, deadline)
        except OutOfTimeError as error:
            raise OutOfTimeError(f"{plan.name}: {error}") from None
    if process_rank() == 0:
        network.requires_grad_(True)
        config = config.model_copy(update={"training": {**training, "devices": result.devices}})
        trained = TrainedModel(plan.name, network, config, kernel)
        by_scale = {f"validation, x{scale}": score_at(trained, data, device, scale) for scale in plan.scales}
        scores = mean_scores(list(by_scale.values()))
        save_model(trained, folder, {"validation": scores, **(by_scale if len(by_scale) > 1 else {})})
        curve = [
            {key: row[key] for key in ("step", "loss", "psnr_db", "ssim")} for row in result.rows if "psnr_db" in row
        ]
        content = {
            "architecture": plan.architecture.name,
            "parameters": parameter_count(network),
            "distinct_lenses": training["distinct_lenses"],
            "devices": result.devices,
            "best_step": result.kept_step,
            "validation": scores,
            "curve": curve,
        }
        write_metrics(folder, plan.identity, result.seconds, content)
        (folder / CHECKPOINT_NAME).unlink()
        (folder / FIRST_GUESSES_NAME).unlink(missing_ok=True)
    wait_for_all()
    return read_metrics(folder)


def describe_training(plan: Plan, settings: TrainSettings, stored_count: int, seed: int) -> dict[str, Any]:
    """What config.json and the card say of how a model is trained."""
    distinct_lenses, pool = stored_count, {}
    if settings.data == "on-the-fly":
        on_the_fly = settings.on_the_fly
        distinct_lenses = on_the_fly.distinct_lenses(plan.loop.total_steps, stored_count)
        pool = {**on_the_fly.model_dump(), "pool_size": on_the_fly.blocks(stored_count) * on_the_fly.block_size}
    adversarial = plan.architecture.adversarial
    last = adversarial or plan.architecture.unsupervised
    return {
        **plan.loop.model_dump(mode="json"),
        "data": settings.data,
        **pool,
        "distinct_lenses": distinct_lenses,
        **({"trainable": list(plan.trainable)} if plan.trainable else {}),
        **({"adversarial": settings.adversarial.model_dump(mode="json")} if adversarial else {}),
        **({"content": settings.content.model_dump(mode="json")} if "content" in settings.loss else {}),
        "seed": seed,
        "kept_weights": "moving average at the last step" if last else "moving average, best validation PSNR",
    }


def _with_content(
    context: LossContext, folder: Path, samples: SampleSource, settings: TrainSettings, data_sha256: str, seed: int
) -> LossContext:
    """`context` with the run's content encoder, which process 0 trains if it is not there."""
    identity = json.dumps([data_sha256, settings.target, settings.data, settings.on_the_fly.model_dump(mode="json")])
    own_seed = derive_seed(seed, CONTENT_FOLDER)
    for turn in (0, 1):
        if (process_rank() == 0) == (turn == 0):
            with progress_bar("train content encoder", settings.content.steps, turn == 0) as advance:
                encoder = load_or_train_content_encoder(folder, samples, settings.content, own_seed, advance, identity)
        wait_for_all()
    return LossContext(context.data_range, context.operator, encoder)


def validation_scores(model: TrainedModel, data: TrainingData, device: torch.device) -> dict[str, float]:
    """Mean PSNR and SSIM over the validation split, and over the scales that the model serves."""
    return mean_scores([score_at(model, data, device, scale) for scale in model.config.scales])


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score."""
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def score_at(model: TrainedModel, data: TrainingData, device: torch.device, scale: int) -> dict[str, float]:
    """Mean PSNR and SSIM over the validation split at one scale, with the training split's data range."""
    pairs = data.val.at_scale(scale)
    scores = image_scores(model.at_scale(scale).super_resolve_pairs(pairs, device), pairs, data.data_ranges[scale])
    return {name: float(np.mean(scores[name])) for name in ("psnr_db", "ssim")}


def _data_range(pairs: Pairs) -> float:
    return data_range_of(pairs.hr, pairs.hr_mask)


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
    return Adversary(
        discriminator.to(device),
        settings,
        plan.loop.steps,
        kind=sizes["adversary"],
        autocast=plan.loop.uses_bfloat16(device),
        synchronise=average_gradients,
    )
