"""The training loop: every network, pretrained or not, adversarial or not, is trained by this one."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from simulate.errors import InputError
from simulate.settings import Settings

from .adversarial import Adversary
from .checkpoint import CHECKPOINT_NAME, load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from .losses import pixel_loss
from .samples import SampleSource, draw_batch
from .training_log import TrainingLog


class LoopSettings(Settings):
    """How one network is trained."""

    steps: int = Field(400, ge=1)
    batch_size: int = Field(16, ge=1)
    crop_size: int | None = Field(24, ge=8)  # LR pixels; None trains on whole images (their largest square)
    augment: bool = True  # random flips and quarter turns
    loss: Literal["l1", "mse", "charbonnier"] = "l1"
    learning_rate: float = Field(2e-3, gt=0)  # reached after the warm-up, from where it falls as a cosine
    final_learning_rate_fraction: float = Field(0.01, ge=0, le=1)
    warm_up_fraction: float = Field(0.05, ge=0, lt=1)  # of the steps
    ema_decay: float = Field(0.999, ge=0, lt=1)
    gradient_clip: float | None = Field(1.0, gt=0)  # largest norm of a step's gradient
    log_interval: int = Field(10, ge=1)  # steps
    validation_interval: int = Field(50, ge=1)
    checkpoint_interval: int = Field(100, ge=1)


class NonFiniteLossError(RuntimeError):
    """Training ran into NaN or infinity."""


@dataclass(frozen=True)
class TrainingResult:
    kept_step: int
    """The step whose averaged weights the network now has."""
    rows: list[dict[str, Any]]
    """The log."""
    seconds: float
    """Spent in training, over all interruptions."""


def scheduled_learning_rate(step: int, settings: LoopSettings) -> float:
    """The learning rate at `step` (1 ... steps): linear warm-up, then a cosine down to the final fraction."""
    warm_up = round(settings.warm_up_fraction * settings.steps)
    if step <= warm_up:
        return settings.learning_rate * step / warm_up
    done = (step - warm_up) / (settings.steps - warm_up)
    floor = settings.final_learning_rate_fraction
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def averaging_decay(step: int, ema_decay: float) -> float:
    """Decay of the moving average of weights at `step`: short at first, so that the start is soon forgotten."""
    return min(ema_decay, (1 + step) / (10 + step))


class Trainer:
    """Trains the parameters of `network` that require gradients, from `samples`, on their device."""

    def __init__(
        self,
        network: nn.Module,
        samples: SampleSource,
        settings: LoopSettings,
        seed: int,
        adversary: Adversary | None = None,
    ) -> None:
        self.device = samples.device
        # channels last makes convolutions faster; torch's own type stubs do not know the argument
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.samples = samples
        self.settings = settings
        self.adversary = adversary
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.best: dict[str, Tensor] = {}
        self.best_step, self.best_psnr_db = 0, -math.inf
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        # batch statistics are averaged with their weights; the count of batches, which nothing uses, is not
        self.followed = [tensor for tensor in self.network.state_dict().values() if tensor.is_floating_point()]
        self.averaged = [tensor for tensor in self.average.state_dict().values() if tensor.is_floating_point()]
        self.optimiser = torch.optim.Adam(self.parameters, betas=(0.9, 0.999), fused=self.device.type == "cuda")
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.loss = pixel_loss(settings.loss)
        # step, samples on the device and their indices, numbers; not yet off the device
        self.pending: list[tuple[int, Tensor, Tensor, dict[str, Tensor]]] = []

    def run(
        self,
        advance: Callable[..., None],
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        keep_best: bool = False,
        folder: Path | None = None,
        identity: str = "",
    ) -> TrainingResult:
        """Train to the last step, from the checkpoint in `folder` if it has one.

        The network ends with averaged weights: those of the best validation PSNR if `keep_best`, else the last.
        `validate` scores a network (needs "psnr_db" to keep the best). With a `folder`, logs and checkpoints go there;
        `identity` is stored in the checkpoint. `advance(steps, note)` moves a progress bar.
        Raises `NonFiniteLossError` with the step and samples; the last checkpoint stays as it was.
        """
        settings, begun = self.settings, time.perf_counter()
        checkpoint = folder / CHECKPOINT_NAME if folder else None
        done, earlier = self._restore(checkpoint) if checkpoint and checkpoint.is_file() else (0, 0.0)
        log = TrainingLog(folder, done + 1) if folder else None
        rows = log.rows if log else []
        note = ""
        advance(done)
        self.network.train()
        try:
            self.samples.start(done + 1, lambda told: advance(0, told))
            for step in range(done + 1, settings.steps + 1):
                self._step(step)
                advance(1, note)
                validating = validate is not None and self._due(step, settings.validation_interval)
                saving = checkpoint is not None and self._due(step, settings.checkpoint_interval)
                if not (validating or saving or self._due(step, settings.log_interval)):
                    continue
                row = self._collect()
                if validate is not None and validating:
                    row.update(validate(self.average))
                    if keep_best and row["psnr_db"] > self.best_psnr_db:
                        self.best_step, self.best_psnr_db = step, row["psnr_db"]
                        self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
                note = _describe(row, note)
                if log:
                    log.add(row)
                if checkpoint and saving:
                    seconds = earlier + time.perf_counter() - begun
                    self._save(checkpoint, {"identity": identity, "step": step, "seconds": seconds})
        finally:
            if log:
                log.close()
        self.network.load_state_dict(self.best if keep_best else self.average.state_dict())
        kept = self.best_step if keep_best else settings.steps
        return TrainingResult(kept, rows, earlier + time.perf_counter() - begun)

    def _due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self.settings.steps

    def _step(self, step: int) -> None:
        """One optimisation step. Nothing here waits for the device."""
        settings, adversary = self.settings, self.adversary
        learning_rate = scheduled_learning_rate(step, settings)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        samples = self.samples.at(step)
        lr, hr, mask, rows = draw_batch(
            samples, settings.batch_size, settings.crop_size, settings.augment, self.generator
        )
        fighting = adversary is not None and step > adversary.warm_start_steps
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.network(lr).float()
            loss = self.loss(output, hr, mask)
            if adversary is not None and fighting:
                loss = loss + adversary.generator_loss(output, mask)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.gradient_clip or math.inf)
        self.optimiser.step()
        decay = averaging_decay(step, settings.ema_decay)
        get_ema_multi_avg_fn(decay)(self.averaged, self.followed, step)
        numbers = {"loss": loss.detach(), "gradient_norm": norm}
        if adversary is not None and fighting:
            numbers["discriminator_loss"] = adversary.learn(output, hr, mask, learning_rate)
        self.pending.append((step, rows, samples.index, numbers))

    def _collect(self) -> dict[str, Any]:
        """Means of the pending steps' numbers, after checking that all are finite."""
        values = iter(torch.stack([value for *_, numbers in self.pending for value in numbers.values()]).tolist())
        series: dict[str, list[float]] = {}
        for step, rows, index, numbers in self.pending:
            for key in numbers:
                series.setdefault(key, []).append(next(values))
                if not math.isfinite(series[key][-1]):
                    samples = index[rows.cpu()].tolist()
                    raise NonFiniteLossError(
                        f"step {step}: {key} is not finite; the batch held samples {samples}. "
                        f"Try a smaller learning rate, or look at these images."
                    )
        last = self.pending[-1][0]
        self.pending.clear()
        means = {key: sum(one) / len(one) for key, one in series.items()}
        return {"step": last, "learning_rate": scheduled_learning_rate(last, self.settings), **means}

    def _save(self, path: Path, numbers: dict[str, Any]) -> None:
        tensors = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimiser": optimiser_tensors(self.optimiser),
            "generator": {"state": self.generator.get_state()},
            **(self.adversary.tensors() if self.adversary else {}),
        }
        best = {"best_step": self.best_step, "best_psnr_db": self.best_psnr_db if self.best else None}
        save_checkpoint(path, tensors, {**numbers, **best})

    def _restore(self, path: Path) -> tuple[int, float]:
        """Take up the state of a checkpoint; returns its step and the seconds spent until then."""
        tensors, numbers = load_checkpoint(path)
        self.network.load_state_dict(tensors["network"])
        self.average.load_state_dict(tensors["average"])
        restore_optimiser(self.optimiser, tensors["optimiser"])
        state = tensors["generator"]["state"]
        if state.shape != self.generator.get_state().shape:
            raise InputError(
                f"{path}: this training was begun on another kind of device; go on there, or train again with --fresh"
            )
        self.generator.set_state(state)
        if "best" in tensors:
            self.best = {name: tensor.to(self.device) for name, tensor in tensors["best"].items()}
            self.best_step, self.best_psnr_db = numbers["best_step"], numbers["best_psnr_db"]
        if self.adversary:
            self.adversary.restore(tensors)
        return numbers["step"], numbers["seconds"]


def _describe(row: dict[str, Any], before: str) -> str:
    """The progress bar's note: the newest loss, and the newest validation PSNR known."""
    psnr = f"{row['psnr_db']:.2f} dB" if "psnr_db" in row else before.partition(", ")[2]
    return f"loss {row['loss']:.4g}" + (f", {psnr}" if psnr else "")
