"""The kinds of dark matter, one file each. A new kind is a new file and a line in `POPULATIONS`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..settings import Settings
from .axion import AxionSettings, draw_axion
from .base import Substructure, SubstructureContext
from .cdm import CDMSettings, draw_cdm
from .none import draw_none

__all__ = ["POPULATIONS", "PopulationSettings", "Substructure", "SubstructureContext", "draw_substructure"]


class PopulationSettings(Settings):
    """The priors of every kind of dark matter."""

    axion: AxionSettings = AxionSettings()
    cdm: CDMSettings = CDMSettings()


POPULATIONS: Mapping[str, Callable[[Any, SubstructureContext, np.random.Generator], Substructure]] = {
    "axion": draw_axion,
    "cdm": draw_cdm,
    "none": draw_none,
}


def draw_substructure(
    kind: str, settings: PopulationSettings, context: SubstructureContext, rng: np.random.Generator
) -> Substructure:
    """Draw the substructure of one lens."""
    return POPULATIONS[kind](getattr(settings, kind, None), context, rng)
