"""The kinds of sources, one file each. A new kind is a new file, and a line in `SourceSettings` and in `SOURCES`."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Tag

from .base import SPLITS, Source, Split
from .clumpy import ClumpySettings, draw_clumpy
from .galaxy import GalaxySettings, draw_galaxy
from .sersic import SersicSettings, draw_sersic_source

__all__ = [
    "SOURCES",
    "SPLITS",
    "ClumpySettings",
    "GalaxySettings",
    "SersicSettings",
    "Source",
    "SourceSettings",
    "Split",
    "draw_source",
]

SOURCES: Mapping[str, Callable[[Any, Split, np.random.Generator], Source]] = {
    "clumpy": draw_clumpy,
    "galaxy": draw_galaxy,
    "sersic": draw_sersic_source,
}


def _kind_of(value: Any) -> Any:
    """The kind that settings are of; without one, Sersic."""
    return value.get("kind", "sersic") if isinstance(value, dict) else getattr(value, "kind", None)


SourceSettings = Annotated[
    Annotated[ClumpySettings, Tag("clumpy")]
    | Annotated[GalaxySettings, Tag("galaxy")]
    | Annotated[SersicSettings, Tag("sersic")],
    Discriminator(
        _kind_of,
        custom_error_type="unknown_kind",
        custom_error_message=f"a source of kind {', '.join(SOURCES)}",
    ),
]


def draw_source(
    settings: ClumpySettings | GalaxySettings | SersicSettings, split: Split, rng: np.random.Generator
) -> Source:
    """Draw one source. `split` decides which real galaxies it can be; other kinds do not look at it."""
    return SOURCES[settings.kind](settings, split, rng)
