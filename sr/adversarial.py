"""The adversarial stage of SRGAN (Ledig et al. 2017, arXiv:1609.04802, section 2.2)."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from simulate.settings import Settings

from .checkpoint import optimiser_tensors, restore_optimiser
from .models.srgan import Discriminator


class AdversarialSettings(Settings):
    """How an adversarial model is trained: a warm start with the pixel loss alone, then against a discriminator."""

    weight: float = Field(1e-3, gt=0)  # of the adversarial loss beside the content loss; the paper's equation 3
    warm_start_fraction: float = Field(0.5, ge=0, lt=1)  # of the steps


class Adversary:
    """The discriminator and its optimiser.

    The paper's content loss compares VGG features; VGG's weights come with torchvision, which we do without, and were
    learned on photographs: our content loss is the pixel loss.
    """

    def __init__(self, discriminator: Discriminator, settings: AdversarialSettings, steps: int) -> None:
        self.discriminator = discriminator.train()
        self.weight = settings.weight
        self.warm_start_steps = round(settings.warm_start_fraction * steps)
        self.optimiser = torch.optim.Adam(discriminator.parameters(), betas=(0.9, 0.999))

    def generator_loss(self, output: Tensor, mask: Tensor) -> Tensor:
        """Weighted loss of (B,1,H,W) network output that the discriminator does not take for a true image."""
        self.discriminator.requires_grad_(False)  # the generator's step needs no gradients here
        logits = self.discriminator(output * mask).float()
        return self.weight * binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    def learn(self, output: Tensor, hr: Tensor, mask: Tensor, learning_rate: float) -> Tensor:
        """One step of the discriminator towards telling `output` from `hr`, both (B,1,H,W); returns its loss."""
        self.discriminator.requires_grad_(True)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        with torch.autocast(hr.device.type, torch.bfloat16, enabled=hr.device.type == "cuda"):
            true, false = self.discriminator(hr * mask).float(), self.discriminator(output.detach() * mask).float()
        loss = binary_cross_entropy_with_logits(true, torch.ones_like(true))
        loss = loss + binary_cross_entropy_with_logits(false, torch.zeros_like(false))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()

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
