"""The adversarial stage of SRGAN (Ledig et al. 2017, arXiv:1609.04802, section 2.2), with three kinds of loss.

The paper's content loss compares features that VGG learned on photographs; here it is whatever the training's loss
says, which may be the features of `sr.content`.
"""

from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from simulate.settings import Settings

from .checkpoint import optimiser_tensors, restore_optimiser
from .models.srgan import AdversaryKind
from .processes import mean_over_processes
from .samples import Batch


class AdversarialSettings(Settings):
    """How an adversarial model is trained: a warm start with the other losses alone, then against a discriminator."""

    weight: float = Field(1e-3, gt=0)  # of the adversarial loss beside the content loss; the paper's equation 3
    warm_start_fraction: float = Field(0.5, ge=0, lt=1)  # of the steps


def generator_penalty(kind: AdversaryKind, false: Tensor, true: Tensor | None = None) -> Tensor:
    """How well the generator is found out, from (B,1) logits of its images and, if relativistic, of true images.

    standard: -log D(false), Goodfellow et al. 2014, arXiv:1406.2661, section 3, D being the logit's sigmoid;
    least-squares: (D(false) - 1)^2 / 2, Mao et al. 2017, arXiv:1611.04076, equation 9, D being the logit itself;
    relativistic: -log D(false, true) - log(1 - D(true, false)), Wang et al. 2018 (ESRGAN), arXiv:1809.00219,
    equation 2, where D(a, b) is the sigmoid of a's logit less the mean logit of b.
    """
    if kind == "least-squares":
        return ((false - 1) ** 2).mean() / 2
    if kind == "standard":
        return softplus(-false).mean()
    if true is None:
        raise ValueError("a relativistic loss needs the logits of true images")
    return discriminator_penalty(kind, true=false, false=true)


def discriminator_penalty(kind: AdversaryKind, true: Tensor, false: Tensor) -> Tensor:
    """How badly the discriminator tells (B,1) logits of true images from those of generated ones.

    The same papers: -log D(true) - log(1 - D(false)); (D(true) - 1)^2 / 2 + D(false)^2 / 2; and
    -log D(true, false) - log(1 - D(false, true)), ESRGAN's equation 1 (Jolicoeur-Martineau 2018, arXiv:1807.00734,
    section 4.2: the relativistic average GAN), which is the generator's with true and false exchanged.
    """
    if kind == "least-squares":
        return ((true - 1) ** 2).mean() / 2 + (false**2).mean() / 2
    if kind == "relativistic":
        mean_true, mean_false = (mean_over_processes(logits.mean()) for logits in (true, false))
        true, false = true - mean_false, false - mean_true
    return softplus(-true).mean() + softplus(false).mean()  # softplus(-x) = -log(sigmoid(x)), without overflow


def _alone(parameters: Iterable[Tensor]) -> None:
    """Average gradients over one process."""


class Adversary:
    """The discriminator, on its device, and its optimiser. Nothing here waits for the device.

    `steps` are the training's; with `autocast` the discriminator computes in bfloat16 and its logits and losses in
    float32; `synchronise(parameters)` averages the parameters' gradients over the processes of a training.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        settings: AdversarialSettings,
        steps: int,
        kind: AdversaryKind = "standard",
        autocast: bool = False,
        synchronise: Callable[[Iterable[Tensor]], None] = _alone,
    ) -> None:
        # as the network in the trainer: faster convolutions, an argument that torch's type stubs do not know
        self.discriminator = discriminator.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.weight, self.kind = settings.weight, kind
        self.warm_start_steps = round(settings.warm_start_fraction * steps)
        self.autocast, self.synchronise = autocast, synchronise
        self.parameters = list(self.discriminator.parameters())
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam(
            self.parameters, betas=(0.9, 0.999), fused=self.parameters[0].is_cuda
        )

    def generator_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Weighted loss of (B,C,H,W) network output that the discriminator does not take for a true image."""
        self.discriminator.requires_grad_(False)  # the generator's step needs no gradients here
        false = self._logits(output, batch)
        true = self._logits(batch.hr, batch) if self.kind == "relativistic" else None
        return self.weight * generator_penalty(self.kind, false, true)

    def learn(self, output: Tensor, batch: Batch, learning_rate: float) -> Tensor:
        """One step of the discriminator towards telling `output` from `batch.hr`, both (B,C,H,W); returns its loss."""
        self.discriminator.requires_grad_(True)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        true, false = self._logits(batch.hr, batch), self._logits(output.detach(), batch)
        loss = discriminator_penalty(self.kind, true, false)
        self.optimiser.zero_grad()
        loss.backward()
        self.synchronise(self.parameters)
        self.optimiser.step()
        return loss.detach()

    def _logits(self, images: Tensor, batch: Batch) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return self.discriminator(torch.where(batch.mask, images, 0.0)).float()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimiser": optimiser_tensors(self.optimiser),
        }

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of `tensors`."""
        self.discriminator.load_state_dict(tensors["discriminator"])
        restore_optimiser(self.optimiser, tensors.get("discriminator_optimiser", {}))
