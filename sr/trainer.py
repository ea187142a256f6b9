"""The training loop: every network, pretrained or not, adversarial or not, in one process or many, is trained by this.

Nothing in a step waits for the device. What a step draws depends on the seed and its number alone, so a training that
was stopped goes on as if it had not been, and the same in all processes (`sr.processes`).
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from simulate.errors import InputError

from .adversarial import Adversary
from .checkpoint import CHECKPOINT_NAME, load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from .degradation import degradation_of_batch, knows_degradation
from .first_guesses import with_first_guesses
from .losses import NO_CONTEXT, LossContext, build_loss
from .operators import ForwardOperator
from .predicted_variance import SIGMA_WEIGHT, predicts_sigma, sigma_loss
from .processes import agreed, average_gradients, mean_over_processes, process_count, process_rank
from .samples import Batch, Samples, SampleSource, draw_batch
from .schedule import LoopSettings, averaging_decay, scheduled_learning_rate
from .training_log import TrainingLog


class NonFiniteLossError(RuntimeError):
    """Training ran into NaN or infinity."""


class OutOfTimeError(RuntimeError):
    """The time that a training was given is over; its checkpoint is kept."""


@dataclass(frozen=True)
class TrainingResult:
    kept_step: int
    """The step whose averaged weights the network now has."""
    rows: list[dict[str, Any]]
    """The log."""
    seconds: float
    """Spent in training, over all interruptions."""
    devices: list[str]
    """That it was trained on."""


class Trainer:
    """Trains the parameters of `network` that require gradients, from `samples`, on their device."""

    def __init__(
        self,
        network: nn.Module,
        samples: SampleSource,
        settings: LoopSettings,
        seed: int,
        adversary: Adversary | None = None,
        context: LossContext = NO_CONTEXT,
        coarser: Mapping[int, ForwardOperator] | None = None,
    ) -> None:
        """`coarser` has operators by scale, of scales that divide the samples': the network learns them in turns.

        Raises `InputError` if a loss needs what is not in `context`, or batches do not divide into their parts.
        """
        self.device = samples.device
        # channels last makes convolutions faster; torch's own type stubs do not know the argument
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.samples = samples
        self.settings = settings
        self.seed = seed
        self.adversary = adversary
        self.loss = build_loss(settings.loss, context)
        self.operator = context.operator if knows_degradation(network) else None
        if knows_degradation(network) and self.operator is None:
            raise InputError("a network that knows the degradation needs the PSFs of both instruments, found none")
        self.operators = [*([self.operator] if self.operator else []), *(coarser or {}).values()]
        self.parts = settings.accumulate * process_count()
        for batch_size in {settings.batch_at(1)[0], settings.batch_at(settings.total_steps)[0]}:
            if batch_size % self.parts:
                raise InputError(
                    f"batch_size: expected a multiple of {self.parts} ({settings.accumulate} accumulated x "
                    f"{process_count()} processes), found {batch_size}"
                )
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.best: dict[str, Tensor] = {}
        self.best_step, self.best_psnr_db = 0, -math.inf
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        # batch statistics are averaged with their weights; the count of batches, which nothing uses, is not
        self.followed = [tensor for tensor in self.network.state_dict().values() if tensor.is_floating_point()]
        self.averaged = [tensor for tensor in self.average.state_dict().values() if tensor.is_floating_point()]
        self.optimiser = torch.optim.Adam(self.parameters, betas=(0.9, 0.999), fused=True)
        self.generator = torch.Generator(self.device)
        self.bfloat16 = settings.uses_bfloat16(self.device)
        # a compiled network would be compiled anew for the operator of each batch
        compiled = settings.compiles(self.device) and self.operator is None
        self.forward = torch.compile(self.network, dynamic=False) if compiled else self.network
        self.devices = [torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"]
        # step, samples on the device and their indices, numbers; not yet off the device
        self.pending: list[tuple[int, list[Tensor], Tensor, dict[str, Tensor]]] = []

    def run(
        self,
        advance: Callable[..., None],
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        keep_best: bool = False,
        folder: Path | None = None,
        identity: str = "",
        deadline: float = math.inf,
    ) -> TrainingResult:
        """Train to the last step, from the checkpoint in `folder` if it has one.

        The network ends with averaged weights: those of the best validation PSNR if `keep_best`, else the last.
        `validate` scores a network (needs "psnr_db" to keep the best). With a `folder`, logs and checkpoints go there;
        `identity` is stored in the checkpoint. `advance(steps, note)` moves a progress bar. Of several processes,
        number 0 alone validates and writes, and it alone ends with the best weights.
        Raises `NonFiniteLossError` with the step and samples; the last checkpoint stays as it was. Raises
        `OutOfTimeError` after `deadline` (of `time.monotonic`), with a checkpoint of the last step.
        """
        settings, begun = self.settings, time.perf_counter()
        checkpoint = folder / CHECKPOINT_NAME if folder else None
        done, earlier = self._restore(checkpoint) if checkpoint and checkpoint.is_file() else (0, 0.0)
        first = process_rank() == 0
        log = TrainingLog(folder, done + 1) if folder and first else None
        rows = log.rows if log else []
        note = ""
        advance(done)
        self.network.train()
        try:
            self.samples.start(done + 1, lambda told: advance(0, told))
            if getattr(self.network, "guesses_from_whole_images", False):
                self._guess_first(done + 1, lambda told: advance(0, told), folder, identity, deadline)
            for step in range(done + 1, settings.total_steps + 1):
                self._step(step)
                advance(1, note)
                validating = validate is not None and self._due(step, settings.validation_interval)
                saving = checkpoint is not None and self._due(step, settings.checkpoint_interval)
                if not (validating or saving or self._due(step, settings.log_interval)):
                    continue
                row = self._collect()
                if validate is not None and validating and first:
                    row.update(validate(self.average))
                    if keep_best and row["psnr_db"] > self.best_psnr_db:
                        self.best_step, self.best_psnr_db = step, row["psnr_db"]
                        self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
                note = _describe(row, note)
                if log:
                    log.add(row)
                late = step < settings.total_steps and agreed(time.monotonic() > deadline, self.device)
                if checkpoint and (saving or late) and first:
                    seconds = earlier + time.perf_counter() - begun
                    self._save(checkpoint, {"identity": identity, "step": step, "seconds": seconds})
                if late:
                    raise OutOfTimeError(f"out of time after step {step} of {settings.total_steps}")
        finally:
            if log:
                log.close()
        self.network.load_state_dict(self.best if keep_best and self.best else self.average.state_dict())
        kept = self.best_step if keep_best else settings.total_steps
        return TrainingResult(kept, rows, earlier + time.perf_counter() - begun, self.devices)

    def _due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self.settings.total_steps

    def _guess_first(
        self, step: int, tell: Callable[[str], None], folder: Path | None, identity: str, deadline: float
    ) -> None:
        """Give the samples what the network starts from. Raises `OutOfTimeError` after `deadline`."""
        assert self.operator is not None
        kept = folder if process_rank() == 0 else None
        self.samples, finished = with_first_guesses(
            self.samples.at(step), self.average, self.operator, tell, kept, identity, deadline
        )
        if agreed(not finished, self.device):
            raise OutOfTimeError("out of time before all first guesses were made")

    def _step(self, step: int) -> None:
        """One optimisation step."""
        learning_rate = scheduled_learning_rate(step, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        samples = self.samples.at(step)
        numbers: dict[str, Tensor] = {}
        rows = []
        self.optimiser.zero_grad()
        for part in range(self.settings.accumulate):
            part += process_rank() * self.settings.accumulate
            batch = self._draw(step, part, samples)
            for name, value in self._learn(step, part, batch, learning_rate).items():
                share = value / self.settings.accumulate
                numbers[name] = numbers[name] + share if name in numbers else share
            rows.append(batch.rows)
        average_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_clip or math.inf)
        self.optimiser.step()
        decay = averaging_decay(step, self.settings.ema_decay)
        get_ema_multi_avg_fn(decay)(self.averaged, self.followed, step)
        self.pending.append((step, rows, samples.index, {**numbers, "gradient_norm": norm}))

    def _draw(self, step: int, part: int, samples: Samples) -> Batch:
        """A part of the batch of `step`, of all parts in all processes."""
        batch_size, crop_size = self.settings.batch_at(step)
        size = batch_size // self.parts
        self.generator.manual_seed(_seed(self.seed, step))
        rows = slice(part * size, (part + 1) * size)
        return draw_batch(samples, batch_size, crop_size, self.settings.augment, self.generator, rows)

    def _learn(self, step: int, part: int, batch: Batch, learning_rate: float) -> dict[str, Tensor]:
        """Add the gradients of this part of the batch; returns its losses."""
        fighting = self.adversary if self.adversary and step > self.adversary.warm_start_steps else None
        operator = self.operators[step % len(self.operators)] if self.operators else None
        if operator:
            batch = batch.at_scale(operator.scale)
        own_loss = getattr(self.network, "training_loss", None)  # of networks whose answer is not compared with the HR
        told = (degradation_of_batch(batch, operator),) if operator else ()
        if batch.first_guess is not None:
            told = (*told, batch.first_guess)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if own_loss:
                self.generator.manual_seed(_seed(self.seed, step, part))
                terms = {"own": own_loss(batch, self.generator, *told)}
            else:
                if predicts_sigma(self.network):
                    output, sigma = self.network.mean_and_sigma(batch.lr, *told)
                else:
                    output, sigma = self.forward(batch.lr, *told).float(), None
        if not own_loss:
            terms = self.loss(output, batch)
            if sigma is not None:
                terms["sigma"] = SIGMA_WEIGHT * sigma_loss(output, sigma, batch)
        if fighting:
            terms["adversarial"] = fighting.generator_loss(output, batch)
        loss = torch.stack(list(terms.values())).sum()
        (loss / self.settings.accumulate).backward()
        numbers = {"loss": loss.detach()}
        if len(terms) > 1:
            numbers |= {f"{name}_loss": term.detach() for name, term in terms.items()}
        if fighting:
            numbers["discriminator_loss"] = fighting.learn(output, batch, learning_rate)
        return numbers

    def _collect(self) -> dict[str, Any]:
        """Means of the pending steps' numbers, after checking that all are finite."""
        stacked = torch.stack([value for *_, numbers in self.pending for value in numbers.values()])
        values = iter(mean_over_processes(stacked).tolist())
        series: dict[str, list[float]] = {}
        for step, rows, index, numbers in self.pending:
            for key in numbers:
                series.setdefault(key, []).append(next(values))
                if not math.isfinite(series[key][-1]):
                    samples = index[torch.cat(rows).cpu()].tolist()
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
            **(self.adversary.tensors() if self.adversary else {}),
        }
        best = {"best_step": self.best_step, "best_psnr_db": self.best_psnr_db if self.best else None}
        save_checkpoint(path, tensors, {**numbers, **best, "devices": self.devices})

    def _restore(self, path: Path) -> tuple[int, float]:
        """Take up the state of a checkpoint; returns its step and the seconds spent until then."""
        tensors, numbers = load_checkpoint(path)
        self.network.load_state_dict(tensors["network"])
        self.average.load_state_dict(tensors["average"])
        restore_optimiser(self.optimiser, tensors["optimiser"])
        if "best" in tensors:
            self.best = {name: tensor.to(self.device) for name, tensor in tensors["best"].items()}
            self.best_step, self.best_psnr_db = numbers["best_step"], numbers["best_psnr_db"]
        if self.adversary:
            self.adversary.restore(tensors)
        self.devices = list(dict.fromkeys([*numbers["devices"], *self.devices]))
        return numbers["step"], numbers["seconds"]


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _describe(row: dict[str, Any], before: str) -> str:
    """The progress bar's note: the newest loss, and the newest validation PSNR known."""
    psnr = f"{row['psnr_db']:.2f} dB" if "psnr_db" in row else before.partition(", ")[2]
    return f"loss {row['loss']:.4g}" + (f", {psnr}" if psnr else "")
