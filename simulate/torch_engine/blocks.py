"""Blocks of samples rendered and given their noise on one device, in no more memory than was allowed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from ..errors import InputError
from ..instruments import Instrument, noise_correlation_kernel, noise_sigma_njy
from ..sample import exposure_factors, instruments
from ..scene import Scene
from .imaging import padded_size
from .packing import perturber_count
from .ray_shooting import RayGrid
from .render import View, lr_psfs, render_batch

if TYPE_CHECKING:
    from ..generate import SimulateSettings

MAPS_AT_ONCE = 20
"""Maps of all rays that are in memory at once while rays are shot, a scene (15 were counted)."""
SPECTRA_AT_ONCE = 10
"""Maps of the padded grid that are in memory at once during convolution, with the FFT's own, a scene."""
PERTURBER_BYTES = 4000
"""What the expansion of a perturber takes (1.6 kB were counted); scenes are padded to the one that has most."""
ELEMENT_BYTES = 128
"""What an element of the engine's bounded temporaries takes (28 arrays of cored halos summed directly were counted)."""
GAUSSIAN_LIGHT_BYTES, GAUSSIAN_LIGHT_ELEMENTS = 32, 2**26
"""The same for the light of sums of Gaussians, and its own bound on the elements."""


@dataclass(frozen=True)
class BoundedView(View):
    """A view whose temporaries have at most `elements` numbers."""

    elements: int = 2**27

    def grid(self, dtype: torch.dtype, device: torch.device) -> RayGrid:
        """As `View.grid`."""
        return replace(super().grid(dtype, device), elements=self.elements, elements_traced=self.elements)


def render_block(
    settings: "SimulateSettings",
    scenes: Sequence[Scene],
    generator: Generator,
    device: torch.device,
    memory_bytes: int,
) -> dict[str, Tensor]:
    """hr, hr_noisy (B,1,H,W), lr and lr_noise (B,1,h,w) of scenes, float32 in nJy per pixel, on `device`.

    `generator` is the noise's. Besides the result, tensors take at most `memory_bytes`, however many scenes there are:
    half of it for the maps of the scenes that are rendered at once, half for the temporaries of ray shooting. The
    images depend on it through the order of sums and through which noise goes where. Raises `InputError` if it is too
    little for one scene.
    """
    hr_instrument, lr_instrument = instruments(settings)
    sizes = {"hr": settings.hr_size, "hr_noisy": settings.hr_size}
    sizes |= dict.fromkeys(("lr", "lr_noise"), settings.hr_size // settings.scale)
    block = {name: torch.empty(len(scenes), 1, size, size, device=device) for name, size in sizes.items()}
    last = 0
    for hr, lr in render_parts(settings, scenes, device, memory_bytes):
        part = slice(last, last := last + len(hr))
        block["hr"][part, 0] = hr
        block["hr_noisy"][part, 0] = hr + draw_noise(hr_instrument, noise_sigma_njy(hr_instrument, hr), generator)
        factors = torch.tensor(exposure_factors(scenes[part], lr, lr_instrument), device=device)
        block["lr_noise"][part, 0] = noise_sigma_njy(lr_instrument, lr) * factors[:, None, None]
        block["lr"][part, 0] = lr + draw_noise(lr_instrument, block["lr_noise"][part, 0], generator)
    return block


def render_parts(
    settings: "SimulateSettings", scenes: Sequence[Scene], device: torch.device, memory_bytes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Noiseless HR (b,H,W) and LR (b,h,w) of the scenes, in order, as many together as `memory_bytes` allow."""
    elements = memory_bytes // 2 // ELEMENT_BYTES
    size = (settings.hr_size, settings.scale, settings.scene.supersampling)
    view = BoundedView(*instruments(settings), *size, elements)
    for part in sub_batches(scenes, view, memory_bytes // 2):
        yield render_batch(scenes[part], view, torch.float32, device)


def sub_batches(scenes: Sequence[Scene], view: View, memory_bytes: int) -> Iterator[slice]:
    """Consecutive scenes, as many together as `memory_bytes` allow for all that is not a bounded temporary."""
    rays = view.hr_size * view.supersampling
    spacing = view.hr_instrument.pixel_scale_arcsec / view.supersampling
    padded = max(padded_size(psf, rays, spacing) for psf in {view.hr_instrument.psf, *lr_psfs(scenes, view)})
    maps = 4 * max(MAPS_AT_ONCE * rays**2, SPECTRA_AT_ONCE * padded**2)
    gaussians = max(sum("GAUSSIAN" in name for name in scene.source_model_list) for scene in scenes)
    light = GAUSSIAN_LIGHT_BYTES * min(gaussians * rays**2, GAUSSIAN_LIGHT_ELEMENTS)  # scene by scene
    first, widest = 0, 0
    for row, scene in enumerate(scenes):
        own = maps + PERTURBER_BYTES * perturber_count(scene)
        if light + own > memory_bytes:
            raise InputError(
                f"a memory budget of {2 * memory_bytes / 2**30:.3g} GiB is too small: half of it is for the maps of "
                f"lenses, and one takes {(light + own) / 2**30:.3g} GiB; allow more (train.on_the_fly.memory_gib), or "
                "lower hr_size or supersampling"
            )
        widest = max(widest, own)
        if light + (row + 1 - first) * widest > memory_bytes:
            yield slice(first, row)
            first, widest = row, own
    yield slice(first, len(scenes))


def draw_noise(instrument: Instrument, sigma_njy: Tensor, generator: Generator) -> Tensor:
    """Noise (B,H,W) of 1-sigma `sigma_njy` (B,H,W): `simulate.instruments.draw_noise` on the generator's device."""
    kernel = noise_correlation_kernel(instrument)
    taps = (kernel.sum(0) / math.sqrt(kernel.sum())).tolist()  # the kernel is their outer product
    batch, height, width = sigma_njy.shape
    margin = len(taps) - 1
    noise = torch.randn(batch, height + margin, width + margin, generator=generator, device=sigma_njy.device)
    for axis, size in ((1, height), (2, width)):
        noise = torch.stack([tap * noise.narrow(axis, shift, size) for shift, tap in enumerate(taps)]).sum(0)
    return noise * sigma_njy
