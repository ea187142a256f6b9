"""An adversarial auto-encoder (Makhzani et al. 2015, arXiv:1511.05644) whose features say what is in an image.

The content loss of SRGAN compares features that VGG learned on photographs. These are learned from the very images
that a super-resolution network is trained towards: what an encoder must see in them to paint them again.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from simulate.settings import Settings

from .adversarial import discriminator_penalty, generator_penalty
from .checkpoint import load_checkpoint, save_checkpoint
from .samples import SampleSource, draw_batch
from .stages import fingerprint

ENCODER_NAME = "encoder.safetensors"
STAGES = 3  # of the encoder, each of which halves the resolution
REFERENCE_BATCHES = 16  # from which the features' root mean square is taken


class ContentSettings(Settings):
    """The section `train.content`: the auto-encoder behind the loss `content`, and how it is trained."""

    features: int = Field(16, ge=1)  # channels of the encoder's first stage; each further one has twice as many
    latent: int = Field(4, ge=1)  # numbers for each patch of 8x8 HR pixels
    code_noise: float = Field(0.5, ge=0)  # 1-sigma; codes that carry it are to have the prior's unit variance
    prior_weight: float = Field(0.03, ge=0)  # of the latent discriminator beside the mean square error of asinh(image)
    steps: int = Field(400, ge=1)
    batch_size: int = Field(16, ge=1)
    crop_size: int = Field(48, ge=16)  # HR pixels, or as many as there are
    learning_rate: float = Field(2e-3, gt=0)  # falls as a cosine


class AdversarialAutoEncoder(nn.Module):
    """A convolutional encoder and decoder; images of any size, in the network's domain.

    Both work on asinh(image): else the few brightest pixels, of tens of times the root mean square, are all that is
    learned. The code is a map, 8 times coarser than the image, whose every position is to have a standard normal
    distribution once it carries noise (the paper's Gaussian posterior, section 2.1, of one width): without, the one
    code of empty sky would be a spike in it, that an encoder can only spread by magnifying nothings.
    """

    def __init__(self, settings: ContentSettings, channels: int) -> None:
        super().__init__()
        widths = [settings.features * 2**stage for stage in range(STAGES)]
        stages = []
        for inputs, outputs in pairwise([channels, *widths]):
            halving = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            stages.append(nn.Sequential(halving, nn.LeakyReLU(0.2), nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.stages = nn.ModuleList(stages)
        self.to_code = nn.Conv2d(widths[-1], settings.latent, 1)
        decoder: list[nn.Module] = [nn.Conv2d(settings.latent, widths[-1], 3, padding=1), nn.LeakyReLU(0.2)]
        for inputs, outputs in pairwise([*reversed(widths), widths[0]]):
            doubling = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)
            decoder += [doubling, nn.PixelShuffle(2), nn.LeakyReLU(0.2)]
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(widths[0], channels, 3, padding=1))
        self.feature_rms: Tensor
        self.register_buffer("feature_rms", torch.ones(STAGES))

    def features(self, images: Tensor) -> list[Tensor]:
        """(B,C,H,W) -> the stages' maps (B,2^s*features,H/2^(s+1),W/2^(s+1)), s = 0, 1, 2, sizes rounded up.

        Taken before the activation, where they are not sparse (ESRGAN, arXiv:1809.00219, section 3.3), and divided by
        the stage's root mean square over training images, so that stages count alike and 1 is a large difference.
        """
        maps = self._maps(images)
        return [one / self.feature_rms[stage] for stage, one in enumerate(maps)]

    def encode(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,latent,H/8,W/8) codes, sizes rounded up."""
        return self.to_code(functional.leaky_relu(self._maps(images)[-1], 0.2))

    def reconstruct(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W): what the codes keep of the images."""
        return torch.sinh(self.decode(self.encode(images), images.shape))

    def decode(self, codes: Tensor, shape: torch.Size) -> Tensor:
        """Codes of images of `shape` (B,C,H,W) -> asinh of the images."""
        return self.decoder(codes)[..., : shape[-2], : shape[-1]]

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = [self.stages[0](torch.asinh(images))]
        for stage in self.stages[1:]:
            maps.append(stage(functional.leaky_relu(maps[-1], 0.2)))
        return maps


def train_content_encoder(
    samples: SampleSource, settings: ContentSettings, seed: int, advance: Callable[..., None]
) -> AdversarialAutoEncoder:
    """Train an auto-encoder on random crops of the HR images, on their device; it comes back frozen.

    Depends on `seed`, the samples and the kind of device alone. `advance(steps, note)` moves a progress bar.
    Raises `FloatingPointError` if the training runs into NaN or infinity.
    """
    samples.start(1, lambda told: advance(0, told))
    generator = torch.Generator(samples.device).manual_seed(seed)
    channels = samples.at(1).hr.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = AdversarialAutoEncoder(settings, channels).to(samples.device)
        judge = latent_discriminator(settings.latent).to(samples.device)
    rate = settings.learning_rate
    optimisers = [
        torch.optim.Adam(encoder.parameters(), lr=rate),
        torch.optim.Adam(judge.parameters(), lr=rate, betas=(0.5, 0.999)),  # it must forget: codes move
    ]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, settings.steps) for one in optimisers]

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=samples.device)

    def crops(step: int) -> tuple[Tensor, Tensor]:
        """HR crops, and the same with LR noise and a pedestal of that size: features shall not tell them apart."""
        pairs = samples.at(step)
        crop_size = min(max(1, settings.crop_size // pairs.scale), *pairs.lr.shape[-2:])
        batch = draw_batch(pairs, settings.batch_size, crop_size, True, generator)
        images = torch.where(batch.mask, batch.hr, 0.0)
        sigma = batch.noise.mean((1, 2, 3), keepdim=True)
        return images, images + sigma * (noise(*images.shape) + noise(len(images), 1, 1, 1))

    def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    for step in range(1, settings.steps + 1):
        images, noisy = crops(step)
        codes = encoder.encode(noisy)
        codes = codes + settings.code_noise * noise(*codes.shape)
        # the paper's two phases for the encoder, reconstruction and regularisation (section 2), in one step
        judge.requires_grad_(False)
        error = functional.mse_loss(encoder.decode(codes, images.shape), torch.asinh(images))
        descend(optimisers[0], error + settings.prior_weight * generator_penalty("standard", judge(codes)))
        judge.requires_grad_(True)
        penalty = discriminator_penalty("standard", judge(noise(*codes.shape)), judge(codes.detach()))
        descend(optimisers[1], penalty)
        for schedule in schedules:
            schedule.step()
        advance(1)
    encoder.requires_grad_(False).eval().zero_grad()
    squares = [
        torch.stack([(one**2).mean() for one in encoder.features(crops(settings.steps)[0])])
        for _ in range(REFERENCE_BATCHES)
    ]
    encoder.feature_rms.copy_(torch.stack(squares).mean(0).sqrt())
    if not all(bool(tensor.isfinite().all()) for tensor in encoder.state_dict().values()):
        raise FloatingPointError("the auto-encoder of the loss 'content' became NaN; try a smaller learning rate")
    return encoder


def latent_discriminator(latent: int, features: int = 64) -> nn.Module:
    """Tells codes (B,latent,h,w) from draws of the prior, position by position; (B,1,h,w) logits, high for draws."""
    return nn.Sequential(
        nn.Conv2d(latent, features, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(features, features, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(features, 1, 1),
    )


def load_or_train_content_encoder(
    folder: Path,
    samples: SampleSource,
    settings: ContentSettings,
    seed: int,
    advance: Callable[..., None],
    data_identity: str,
) -> AdversarialAutoEncoder:
    """The encoder that `folder` keeps, if it is of these settings, seed and data; else a new one, which it then keeps.

    `data_identity` says which images `samples` are. Raises `InputError` if what is kept is damaged, and otherwise as
    `train_content_encoder`.
    """
    path, identity = folder / ENCODER_NAME, fingerprint(settings, data=data_identity, seed=seed)
    if path.is_file():
        tensors, numbers = load_checkpoint(path)
        if numbers.get("identity") == identity:
            encoder = AdversarialAutoEncoder(settings, numbers["channels"])
            encoder.load_state_dict(tensors["encoder"])
            return encoder.requires_grad_(False).eval().to(samples.device)
    encoder = train_content_encoder(samples, settings, seed, advance)
    channels = encoder.decoder[-1].out_channels
    save_checkpoint(path, {"encoder": encoder.state_dict()}, {"identity": identity, "channels": channels})
    return encoder
