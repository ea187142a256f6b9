"""What a profile is to the engine: its parameters and its functions."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Deflection = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MacroProfile:
    """A smooth lens: `deflection(x, y, *parameters)`, `convergence(x, y, *parameters)`; none at zero strength."""

    parameters: tuple[str, ...]
    strengths: tuple[str, ...]
    deflection: Callable[..., Deflection]
    convergence: Callable[..., Tensor]


@dataclass(frozen=True)
class RadialProfile:
    """An axisymmetric perturber: `deflection(r, *parameters)` and `convergence(r, *parameters)`."""

    parameters: tuple[str, ...]
    deflection: Callable[..., Tensor]
    convergence: Callable[..., Tensor]
