"""Parts of the truth that scores need, rendered again from its scenes: without substructure, and the lens's light."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.sample import render_scenes
from simulate.scene import Scene, without_substructure
from simulate.shards import Pairs

from .on_the_fly import stored_simulation

REPEATED = 1e-4
"""What an image that is rendered again may differ by from the stored one, as a share of its peak (float32: 3e-6)."""
NEEDED = "scenes are rendered again without their substructure, which needs data of `pipeline simulate` of this version"


@dataclass(frozen=True)
class TruthParts:
    """Parts of the noiseless HR images of N simulated pairs, (N,1,H,W) float32 flux per pixel."""

    macro: np.ndarray
    """The scene without its substructure; NaN for scenes that have none."""
    lens_light: np.ndarray
    """What is not lensed; zero for scenes without any."""

    def select(self, rows: slice | np.ndarray) -> "TruthParts":
        """The parts of these scenes."""
        return TruthParts(self.macro[rows], self.lens_light[rows])


def truth_parts_or_reason(pairs: Pairs, folder: Path, device: torch.device) -> tuple[TruthParts | None, str | None]:
    """`render_truth_parts`, or the reason why the data set in `folder` does not give them."""
    try:
        return render_truth_parts(pairs, folder, device), None
    except InputError as error:
        return None, str(error)


def render_truth_parts(pairs: Pairs, folder: Path, device: torch.device) -> TruthParts:
    """Render the scenes of `pairs` again, by the settings that the data set in `folder` was simulated with.

    Raises `InputError` if it was not simulated, or by another version, so that its images do not come out the same.
    """
    settings, _ = stored_simulation(folder, NEEDED)
    scenes = [Scene.from_json(name) for name in pairs.name]
    first_rows = np.unique(pairs.label, return_index=True)[1].tolist()
    for row, image in _render(scenes, first_rows, settings, device):
        _check_repeated(pairs, row, image, folder)
    smooth = [without_substructure(scene, settings.scene.lensing) for scene in scenes]
    altered = [row for row, scene in enumerate(scenes) if smooth[row].lens_model_list != scene.lens_model_list]
    lit = [row for row, scene in enumerate(scenes) if scene.lens_light_model_list]
    sources: dict[str, Any] = {"source_model_list": [], "kwargs_source": [], "source_deflection_scaling": []}
    sources |= {"point_source_model_list": [], "kwargs_ps": []}
    macro, lens_light = np.full_like(pairs.hr, np.nan), np.zeros_like(pairs.hr)
    for row, image in _render(smooth, altered, settings, device):
        macro[row, 0] = image
    for row, image in _render([replace(one, **sources) for one in smooth], lit, settings, device):
        lens_light[row, 0] = image
    return TruthParts(macro, lens_light)


def _render(
    scenes: list[Scene], rows: list[int], settings: SimulateSettings, device: torch.device
) -> Iterator[tuple[int, np.ndarray]]:
    """Each of `rows` with the HR image (H,W) of its scene."""
    chosen = [scenes[row] for row in rows]
    images = render_scenes(settings, chosen, None if device.type == "cpu" else device) if chosen else []
    return zip(rows, (hr for hr, _ in images), strict=True)


def _check_repeated(pairs: Pairs, row: int, image: np.ndarray, folder: Path) -> None:
    """Whether a scene that is rendered as it is gives the stored image."""
    stored = pairs.hr[row, 0]
    difference = np.abs(image - stored).max() / stored.max() if image.shape == stored.shape else np.inf
    if not difference <= REPEATED:
        raise InputError(
            f"{folder}: sample {pairs.index[row]}, rendered again, differs from its image by {difference:.1e} of the "
            f"peak, expected at most {REPEATED:g}; {NEEDED}"
        )
