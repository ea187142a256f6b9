"""No substructure: the control."""

import numpy as np

from .base import Substructure, SubstructureContext


def draw_none(settings: None, context: SubstructureContext, rng: np.random.Generator) -> Substructure:  # noqa: ARG001
    """Nothing, at no cost in random numbers."""
    return Substructure()
