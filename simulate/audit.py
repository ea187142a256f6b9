"""Every data set carries its own audit: samples rendered again with lenstronomy, the worst difference in each shard."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from .sample import draw_sample, instruments, render_scenes
from .seeing import under_seeing
from .shards import read_manifest
from .sources import Split

if TYPE_CHECKING:
    from .generate import SimulateSettings

TOLERANCE = 1e-4
"""Relative L2 difference from lenstronomy above which data are not written."""


def audit_sample(settings: "SimulateSettings", seed: int, index: int, split: Split = "train") -> dict[str, float]:
    """How far a sample's noiseless images are from lenstronomy's `ImageModel`, with as many rays.

    `relative_l2`: |ours - theirs| / |theirs|; `of_peak`: largest difference over the brightest pixel. Images of point
    sources are left out: lenstronomy interpolates the PSF there.
    """
    from .lenstronomy_engine import render_reference

    scene, _ = draw_sample(settings, seed, index, split)
    scene = replace(scene, point_source_model_list=[], kwargs_ps=[])
    rays, worst = settings.scene.supersampling, {}
    hr_instrument, lr_instrument = instruments(settings)
    seen_by = hr_instrument, under_seeing(lr_instrument, scene)
    sides = zip(("hr", "lr"), seen_by, (1, settings.scale), strict=True)
    for (side, instrument, factor), ours in zip(sides, render_scenes(settings, [scene])[0], strict=True):
        theirs = render_reference(scene, instrument, settings.hr_size // factor, rays * factor)
        difference = np.abs(ours - theirs)
        worst[f"{side}_relative_l2"] = float(np.linalg.norm(difference) / np.linalg.norm(theirs))
        worst[f"{side}_of_peak"] = float(difference.max() / theirs.max())
    return worst


def audit_record(chosen: Sequence[int], found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What a shard keeps of its audit: the samples and the worst differences. Raises `RuntimeError` if it failed."""
    for index, one in zip(chosen, found, strict=True):
        for side in ("hr", "lr"):
            difference = one[f"{side}_relative_l2"]
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"sample {index}: its {side} image differs from lenstronomy's by {difference:.1e} (relative L2), "
                    f"more than {TOLERANCE:g}; its shard was not written"
                )
    return {"samples": list(chosen), **{name: max(one[name] for one in found) for name in found[0]}}


def read_audits(folder: Path) -> dict[str, Any]:
    """What the audits of all shards of a data set found: the number of samples, and the worst differences."""
    audits = []
    for shards in read_manifest(folder)["splits"].values():
        for entry in shards:
            with h5py.File(folder / entry["file"]) as file:
                if "audit" in file.attrs:
                    audits.append(json.loads(file.attrs["audit"]))
    if not audits:
        return {"samples": 0}
    worst = {name: max(one[name] for one in audits) for name in audits[0] if name != "samples"}
    return {"samples": sum(len(one["samples"]) for one in audits), **worst}
