"""The kinds of dark matter, one file each. A new kind is a new file and a line in `POPULATIONS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import create_model

from ..settings import Settings
from .axion import AxionSettings, draw_axion
from .base import Substructure, SubstructureContext
from .cdm import CDMSettings, draw_cdm
from .fdm import FDMSettings, draw_fdm
from .none import draw_none
from .pyhalo import PyHaloSettings, draw_pyhalo
from .sidm import SIDMSettings, draw_sidm
from .wdm import WDMSettings, draw_wdm

__all__ = ["POPULATIONS", "PopulationSettings", "Substructure", "SubstructureContext", "draw_substructure"]


@dataclass(frozen=True)
class Population:
    """A kind of dark matter: `draw(settings, context, rng)`, and the class of its settings if it has any."""

    draw: Callable[[Any, SubstructureContext, np.random.Generator], Substructure]
    settings: type[Settings] | None = None


POPULATIONS: Mapping[str, Population] = {
    "axion": Population(draw_axion, AxionSettings),
    "cdm": Population(draw_cdm, CDMSettings),
    "fdm": Population(draw_fdm, FDMSettings),
    "none": Population(draw_none),
    "pyhalo": Population(draw_pyhalo, PyHaloSettings),
    "sidm": Population(draw_sidm, SIDMSettings),
    "wdm": Population(draw_wdm, WDMSettings),
}

_fields: Any = {name: (one.settings, one.settings()) for name, one in POPULATIONS.items() if one.settings}
_Registered: Any = create_model("_Registered", __base__=Settings, **_fields)


class PopulationSettings(_Registered):
    """The priors of every kind of dark matter: a section for each of `POPULATIONS` that has settings."""


def draw_substructure(
    kind: str, settings: PopulationSettings, context: SubstructureContext, rng: np.random.Generator
) -> Substructure:
    """Draw the substructure of one lens."""
    return POPULATIONS[kind].draw(getattr(settings, kind, None), context, rng)
