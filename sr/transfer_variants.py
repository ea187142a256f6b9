"""The ways of using a pretrained model on observed pairs, each trained by the one loop."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from simulate.settings import Settings
from simulate.shards import Pairs

from .models import freeze_features, unfreeze
from .normalisation import fit_normalisation
from .samples import load_samples
from .trained_model import TrainedModel, describe_model
from .trainer import LoopSettings, Trainer
from .training import derive_seed, initial_network

VARIANTS = ("zero-shot", "frozen", "fine-tuned", "unpretrained")


class TransferSettings(Settings):
    """The section `transfer`."""

    models: tuple[str, ...] = Field(("rcan", "srresnet"), min_length=1)  # folders in RUN/train
    folds: int = Field(3, ge=2)
    frozen_steps: int = Field(50, ge=1)
    finetune_steps: int = Field(100, ge=1)
    frozen_learning_rate: float = Field(1e-3, gt=0)
    finetune_learning_rate: float = Field(2e-4, gt=0)
    unpretrained_learning_rate: float = Field(2e-3, gt=0)  # as when training from scratch
    batch_size: int = Field(16, ge=1)
    crop_size: int | None = Field(24, ge=8)  # LR pixels; None trains on whole images
    loss: Literal["l1", "mse", "charbonnier"] = "l1"
    final_model: bool = True  # after the folds, fine-tune on all objects and leave a model folder

    @property
    def pretrained_steps(self) -> int:
        """Steps of both stages of a pretrained model, and of an unpretrained one."""
        return self.frozen_steps + self.finetune_steps


@dataclass(frozen=True)
class VariantTrainer:
    """Trains models on observed pairs in all variants."""

    settings: TransferSettings
    seed: int
    device: torch.device
    advance: Callable[..., None]
    """Moves the progress bar: (steps, note)."""

    def predict_held_out(
        self, model: TrainedModel, training: Pairs, held_out: Pairs, fold: int
    ) -> dict[str, np.ndarray]:
        """Train each variant of `model` on `training` and predict `held_out`: variant -> (n,1,H,W) flux."""
        predictions = {}
        place = f"fold {fold + 1}"
        tuned = copy.deepcopy(model)
        predictions["zero-shot"] = self._predict(tuned, held_out)
        self.train_frozen(tuned, training, place)
        predictions["frozen"] = self._predict(tuned, held_out)
        self.finetune(tuned, training, place)
        predictions["fine-tuned"] = self._predict(tuned, held_out)
        predictions["unpretrained"] = self._predict(self.train_unpretrained(model, training, place), held_out)
        return predictions

    def train_frozen(self, model: TrainedModel, training: Pairs, place: str) -> None:
        """Train the upsampling layers of `model` alone; its features and their batch statistics stay as they are."""
        freeze_features(model.network)
        self._train(model, training, self.settings.frozen_steps, self.settings.frozen_learning_rate, f"{place} frozen")

    def finetune(self, model: TrainedModel, training: Pairs, place: str) -> None:
        """Train all layers of `model`."""
        unfreeze(model.network)
        steps, learning_rate = self.settings.finetune_steps, self.settings.finetune_learning_rate
        self._train(model, training, steps, learning_rate, f"{place} fine-tuned")

    def train_unpretrained(self, model: TrainedModel, training: Pairs, place: str) -> TrainedModel:
        """The architecture of `model` from random weights, normalised by `training`."""
        place = f"{place} unpretrained"
        old, seed = model.config, derive_seed(self.seed, model.name, place)
        settings = old.architecture_settings()
        config = describe_model(old.architecture, settings, training, fit_normalisation(training))
        network = initial_network(old.architecture, settings, old.scale, old.channels, seed)
        scratch = TrainedModel(model.name, network, config)
        self._train(scratch, training, self.settings.pretrained_steps, self.settings.unpretrained_learning_rate, place)
        return scratch

    def _train(self, model: TrainedModel, training: Pairs, steps: int, learning_rate: float, place: str) -> None:
        shared = {name: getattr(self.settings, name) for name in ("batch_size", "crop_size", "loss")}
        loop = LoopSettings(steps=steps, learning_rate=learning_rate, **shared)
        samples = load_samples(training, model.config.normalisation, "hr", self.device)
        trainer = Trainer(model.network, samples, loop, derive_seed(self.seed, model.name, place))
        trainer.run(lambda steps, note="": self.advance(steps, f"{model.name} {place} {note}"))

    def _predict(self, model: TrainedModel, pairs: Pairs) -> np.ndarray:
        return model.super_resolve(pairs.lr, pairs.lr_noise, self.device)
