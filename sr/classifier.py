"""The classifier of the check: a small ResNet (He et al. 2016, arXiv:1512.03385) and the loop that trains it."""

import copy
import math

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from simulate.settings import Settings

from .samples import transform


class ClassifierSettings(Settings):
    """The budget that every representation gets."""

    epochs: int = Field(16, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    width: int = Field(8, ge=1)  # channels of the first stage; ResNet-18 has 64


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, Fig. 2), projected where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.residual(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """ResNet-18 with fewer channels; its max pooling, which would blur what is a pixel wide, is a strided block here.

    (B,1,H,W) -> (B,classes) logits, for any H, W.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        for stage in range(4):
            for block in range(2):
                layers.append(Block(channels, width * 2**stage, stride=2 if block == 0 else 1))
                channels = width * 2**stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """He initialisation (arXiv:1502.01852) from `generator` alone; the head starts at equal probabilities."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def train_classifier(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
    settings: ClassifierSettings,
    seed: int,
    device: torch.device,
) -> SmallResNet:
    """Train on images (N,1,S,S) and labels (N,); the epoch with the lowest validation cross-entropy is kept.

    Weights, order and orientations follow from `seed` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    network = SmallResNet(classes, settings.width)
    initialise(network, generator)
    network.to(device)
    images, label = (torch.as_tensor(array).to(device) for array in (train[0], train[1].astype(np.int64)))
    validation_label = torch.as_tensor(validation[1].astype(np.int64))
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    # a last batch of one image has no variance for batch normalisation to divide by: batches of equal size, never one
    batches = max(1, min(math.ceil(len(label) / settings.batch_size), len(label) // 2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.epochs * batches
    )
    best_loss, best_state = math.inf, copy.deepcopy(network.state_dict())
    for _ in range(settings.epochs):
        network.train()
        for rows in torch.randperm(len(label), generator=generator).tensor_split(batches):
            symmetry = torch.randint(8, (len(rows),), generator=generator)
            rows, symmetry = rows.to(device), symmetry.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = network(transform(images[rows], symmetry))
            loss = functional.cross_entropy(logits.float(), label[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        log_probability = torch.as_tensor(predict(network, validation[0], device)).log()
        validation_loss = float(functional.nll_loss(log_probability, validation_label))
        if validation_loss < best_loss:
            best_loss, best_state = validation_loss, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)
    return network


@torch.inference_mode()
def predict(network: nn.Module, images: np.ndarray, device: torch.device, batch_size: int = 256) -> np.ndarray:
    """Class probabilities (N,classes) f8 of images (N,1,S,S)."""
    network.eval()
    parts = [
        network(torch.as_tensor(images[start : start + batch_size]).to(device)).double().softmax(1).cpu()
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts).numpy()
