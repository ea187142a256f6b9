"""Scenes by their signal-to-noise ratio: what super-resolution can do depends on it more than on all else."""

import json

import numpy as np

from simulate.shards import Pairs

MOST_VALUES = 6
"""Of the S/N that exposures were made for, with a group each; more of them are a range, which is cut into three."""


def peak_signal_to_noise(pairs: Pairs) -> np.ndarray:
    """(N,) S/N of the LR pixel where it is highest: what the exposures were made for, or else measured."""
    measured = (pairs.lr / pairs.lr_noise).max(axis=(1, 2, 3)).tolist()
    return np.array([_asked(name) or one for name, one in zip(pairs.name, measured, strict=True)])


def _asked(name: str) -> float | None:
    """From the name of a pair, which is a scene if it was simulated."""
    try:
        scene = json.loads(name)
    except ValueError:
        return None
    return scene.get("lr_peak_signal_to_noise") if isinstance(scene, dict) else None


def signal_to_noise_groups(pairs: Pairs) -> dict[str, np.ndarray]:
    """Which (N,) bool of the scenes are of each S/N, by rising S/N: "S/N 10", or thirds of them, "S/N 52 to 130"."""
    ratio = peak_signal_to_noise(pairs)
    values = np.unique(ratio)
    if len(values) <= MOST_VALUES:
        return {f"S/N {value:g}": ratio == value for value in values}
    edges = np.quantile(ratio, [0, 1 / 3, 2 / 3, 1])
    third = np.searchsorted(edges[1:3], ratio, side="right")
    return {f"S/N {edges[one]:.3g} to {edges[one + 1]:.3g}": third == one for one in range(3)}
