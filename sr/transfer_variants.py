"""The ways of using a pretrained model on observed pairs, each trained by the one loop."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from simulate.settings import Settings
from simulate.shards import Pairs

from .degradation import knows_degradation
from .losses import LossWeights, loss_context
from .models import find_architecture, freeze_features, unfreeze
from .models.lora import add_adapters, merge_adapters
from .models.unrolled_lens import UnrolledLens
from .normalisation import fit_normalisation
from .samples import load_samples
from .schedule import LoopSettings
from .trained_model import TrainedModel, describe_model
from .trainer import Trainer
from .training import derive_seed, initial_network


class TransferSettings(Settings):
    """The section `transfer`."""

    models: tuple[str, ...] = Field(("rcan", "srresnet"), min_length=1)  # folders in RUN/train
    folds: int = Field(3, ge=2)
    frozen_steps: int = Field(50, ge=1)
    finetune_steps: int = Field(100, ge=1)
    trainable: tuple[str, ...] = Field(("upsampling",), min_length=1)
    """Submodules that learn while the others are frozen: "upsampling", "body.layers.2"."""
    frozen_learning_rate: float = Field(1e-3, gt=0)
    finetune_learning_rate: float = Field(2e-4, gt=0)
    unpretrained_learning_rate: float = Field(2e-3, gt=0)  # as when training from scratch
    batch_size: int = Field(16, ge=1)
    crop_size: int | None = Field(24, ge=8)  # LR pixels; None trains on whole images (`crop_size_of`)
    loss: LossWeights = Field({"l1": 1.0})
    adapter_rank: int | None = Field(None, ge=1)  # adds the variant "lora"
    adapter_learning_rate: float = Field(5e-3, gt=0)
    final_model: bool = True  # after the folds, fine-tune on all objects and leave a model folder

    def crop_size_of(self, architecture: str) -> int | None:
        """`crop_size`, but None for networks that make no sense of a part of an image, as when they were trained."""
        return find_architecture(architecture).crop_size(self.crop_size)

    @property
    def pretrained_steps(self) -> int:
        """Steps of both stages of a pretrained model, of adapters, and of an unpretrained model."""
        return self.frozen_steps + self.finetune_steps

    @property
    def variants(self) -> tuple[str, ...]:
        """What is done with each model, in the order of the tables."""
        return ("zero-shot", "frozen", "fine-tuned", *(("lora",) if self.adapter_rank else ()), "unpretrained")

    @property
    def fold_steps(self) -> int:
        """Steps of all variants of a model in one fold. Frozen and fine-tuned are two stages of one training."""
        return self.pretrained_steps * (len(self.variants) - 2)


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
        if self.settings.adapter_rank:
            adapted = copy.deepcopy(model)
            self.train_adapters(adapted, training, place, self.settings.adapter_rank)
            predictions["lora"] = self._predict(adapted, held_out)
        predictions["unpretrained"] = self._predict(self.train_unpretrained(model, training, place), held_out)
        return predictions

    def train_frozen(self, model: TrainedModel, training: Pairs, place: str) -> None:
        """Train the `trainable` layers of `model` alone; all else and its batch statistics stay as they are."""
        freeze_features(model.network, self.settings.trainable)
        self._train(model, training, self.settings.frozen_steps, self.settings.frozen_learning_rate, f"{place} frozen")

    def finetune(self, model: TrainedModel, training: Pairs, place: str) -> None:
        """Train all layers of `model`."""
        unfreeze(model.network)
        steps, learning_rate = self.settings.finetune_steps, self.settings.finetune_learning_rate
        self._train(model, training, steps, learning_rate, f"{place} fine-tuned")

    def train_adapters(self, model: TrainedModel, training: Pairs, place: str, rank: int) -> None:
        """Train low-rank adapters of all layers of `model` and nothing else, and merge them into its weights."""
        place = f"{place} lora"
        generator = torch.Generator().manual_seed(derive_seed(self.seed, model.name, place, "adapters"))
        add_adapters(model.network, rank, generator)
        steps, learning_rate = self.settings.pretrained_steps, self.settings.adapter_learning_rate
        self._train(model, training, steps, learning_rate, place)
        merge_adapters(model.network)

    def train_unpretrained(self, model: TrainedModel, training: Pairs, place: str) -> TrainedModel:
        """The architecture of `model` from random weights, normalised by `training`.

        An encoder, which learns nothing here, is that of `model`: the control is for what is trained.
        """
        place = f"{place} unpretrained"
        old, seed = model.config, derive_seed(self.seed, model.name, place)
        settings = old.architecture_settings()
        config = describe_model(old.architecture, settings, training, fit_normalisation(training))
        network = initial_network(old.architecture, settings, old.scale, old.channels, seed)
        if isinstance(network, UnrolledLens):
            network.encoder.load_state_dict(model.network.encoder.state_dict())  # type: ignore[union-attr]
        scratch = TrainedModel(model.name, network, config)
        self._train(scratch, training, self.settings.pretrained_steps, self.settings.unpretrained_learning_rate, place)
        return scratch

    def _train(self, model: TrainedModel, training: Pairs, steps: int, learning_rate: float, place: str) -> None:
        loop = LoopSettings(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=self.settings.batch_size,
            crop_size=self.settings.crop_size_of(model.config.architecture),
            loss=self.settings.loss,
        )
        samples = load_samples(training, model.config.normalisation, "hr", self.device)
        knows = knows_degradation(model.network)
        context = loss_context(loop.loss, training, model.config.normalisation, "hr", self.device, knows)
        seed = derive_seed(self.seed, model.name, place)
        trainer = Trainer(model.network, samples, loop, seed, context=context)
        trainer.run(lambda steps, note="": self.advance(steps, f"{model.name} {place} {note}"))

    def _predict(self, model: TrainedModel, pairs: Pairs) -> np.ndarray:
        return model.super_resolve_pairs(pairs, self.device)
