"""One sample: drawn from (seed, index), rendered by an engine, seen through noise."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .instruments import Instrument, draw_noise, noise_sigma_njy
from .scene import Scene, draw_scene
from .seeing import under_seeing
from .sources import Split

if TYPE_CHECKING:
    import torch

    from .generate import SimulateSettings
    from .torch_engine.render import View

GPU_MEMORY_BYTES = 4 * 2**30
"""What rendering may take of a GPU's memory, besides its results, if nothing else is said."""


def instruments(settings: "SimulateSettings") -> tuple[Instrument, Instrument]:
    """HR and LR instrument of resolved settings."""
    assert isinstance(settings.hr_instrument, Instrument)
    assert isinstance(settings.lr_instrument, Instrument)
    return settings.hr_instrument, settings.lr_instrument


def view_of(settings: "SimulateSettings") -> "View":
    """What the torch engine needs to know of resolved settings."""
    from .torch_engine.render import View

    return View(*instruments(settings), settings.hr_size, settings.scale, settings.scene.supersampling)


def draw_sample(settings: "SimulateSettings", seed: int, index: int, split: Split) -> tuple[Scene, np.random.Generator]:
    """The scene of sample `index`, which depends on the settings and (seed, index) alone, and its generator."""
    rng = np.random.default_rng([seed, index])
    hr_instrument, _ = instruments(settings)
    field_radius_arcsec = settings.hr_size * hr_instrument.pixel_scale_arcsec / np.sqrt(2)
    kind = settings.classes[index % len(settings.classes)]
    scene = draw_scene(kind, settings.scene, field_radius_arcsec, rng, split)
    if settings.lr_peak_signal_to_noise is not None:
        scene = replace(scene, lr_peak_signal_to_noise=settings.lr_peak_signal_to_noise.draw(rng))
    if settings.lr_psf_fwhm_arcsec is not None:
        scene = replace(scene, lr_psf_fwhm_arcsec=settings.lr_psf_fwhm_arcsec.draw(rng))
    return scene, rng


def render_scenes(
    settings: "SimulateSettings", scenes: Sequence[Scene], device: "torch.device | None" = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noiseless HR (H,W) and LR (h,w) images of each scene, float32 in nJy per pixel.

    On the CPU (`device` None) scenes are rendered one by one, so that an image does not depend on its neighbours to the
    last bit; on another device as many at once as fit into its budget of memory.
    """
    if settings.engine == "lenstronomy":
        from .lenstronomy_engine import render_pair

        size = (settings.hr_size, settings.scale, settings.scene.supersampling)
        hr_instrument, lr_instrument = instruments(settings)
        pairs = [render_pair(scene, hr_instrument, under_seeing(lr_instrument, scene), *size) for scene in scenes]
        return [(hr.astype(np.float32), lr.astype(np.float32)) for hr, lr in pairs]
    import torch

    from .torch_engine.blocks import render_parts
    from .torch_engine.render import render_batch

    if device is None:
        view = view_of(settings)
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]] = (
            render_batch([scene], view, torch.float32, torch.device("cpu")) for scene in scenes
        )
    else:
        batches = render_parts(settings, scenes, device, GPU_MEMORY_BYTES)
    with torch.inference_mode():
        return [pair for hr, lr in batches for pair in zip(hr.cpu().numpy(), lr.cpu().numpy(), strict=True)]


def exposure_factors(scenes: Sequence[Scene], lr_njy: Any, instrument: Instrument) -> list[float]:
    """What the instrument's noise is multiplied by in the images `lr_njy` (B,h,w) of the scenes, NumPy or torch.

    1, or as much as it takes for the S/N that a scene asks for: a longer or shorter exposure under the same sky, where
    reading the detector adds little.
    """
    return [
        1.0
        if (wanted := scene.lr_peak_signal_to_noise) is None
        else float((lr / noise_sigma_njy(instrument, lr)).max()) / wanted
        for scene, lr in zip(scenes, lr_njy, strict=True)
    ]


def observe_sample(
    settings: "SimulateSettings",
    index: int,
    scene: Scene,
    rng: np.random.Generator,
    images: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Noise, label and what else is stored of a sample, from its noiseless images."""
    hr, lr = images
    hr_instrument, lr_instrument = instruments(settings)
    lr_noise = noise_sigma_njy(lr_instrument, lr) * exposure_factors([scene], lr[None], lr_instrument)[0]
    hr_noisy = hr + draw_noise(hr_instrument, noise_sigma_njy(hr_instrument, hr), rng)
    stored = {"hr": hr, "hr_noisy": hr_noisy, "lr": lr + draw_noise(lr_instrument, lr_noise, rng), "lr_noise": lr_noise}
    sample: dict[str, Any] = {name: image.astype(np.float32)[None] for name, image in stored.items()}
    if settings.truth_maps:
        from .torch_engine.truth import truth_maps

        sample["truth"] = truth_maps(scene, settings.hr_size, hr_instrument.pixel_scale_arcsec)
    if scene.lr_psf_fwhm_arcsec is not None:
        sample["lr_psf_fwhm_arcsec"] = scene.lr_psf_fwhm_arcsec
    return {**sample, "label": index % len(settings.classes), "index": index, "name": scene.to_json()}


def simulate_sample(settings: "SimulateSettings", seed: int, index: int, split: Split = "train") -> dict[str, Any]:
    """Sample `index`: its images, label and scene. Depends on the settings, the split and (seed, index) alone."""
    scene, rng = draw_sample(settings, seed, index, split)
    return observe_sample(settings, index, scene, rng, render_scenes(settings, [scene])[0])
