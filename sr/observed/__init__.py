"""Observed pairs: real telescope images, sharp and less sharp, in the layout of the simulated ones."""

from .run import pairs_run
from .settings import PairsSettings

__all__ = ["PairsSettings", "pairs_run"]
