"""What a draw of a source gives back."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..instruments import NANOJANSKY_ZERO_POINT

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LightModels = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Source:
    """Light as lenstronomy (profile, kwargs), fluxes in nJy and angles in arcsec, and what to write down about it."""

    light_models: LightModels
    draw: dict[str, Any] = field(default_factory=dict)


def flux_njy(magnitude: float) -> float:
    """Flux density of an AB magnitude."""
    return float(10 ** (-0.4 * (magnitude - NANOJANSKY_ZERO_POINT)))
