"""Priors over one number, as they are written in a configuration file."""

from typing import Any

import numpy as np
from pydantic import model_validator

from .settings import Settings


class Prior(Settings):
    """A distribution of one number: `1.5`, `{uniform: [low, high]}`, `{log_uniform: [low, high]}`,
    `{normal: [mean, standard_deviation]}` or `{choice: [10, 30, 100]}`, each of them equally likely."""

    fixed: float | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    normal: tuple[float, float] | None = None
    choice: tuple[float, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_number(cls, value: Any) -> Any:
        return {"fixed": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> "Prior":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected a number or exactly one of uniform, log_uniform, normal, choice; found {given}")
        for bounds in (self.uniform, self.log_uniform):
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise ValueError(f"expected low <= high, found {list(bounds)}")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs positive bounds, found {list(self.log_uniform)}")
        if self.normal is not None and self.normal[1] < 0:
            raise ValueError(f"normal needs a standard deviation >= 0, found {self.normal[1]}")
        if self.choice == ():
            raise ValueError("choice needs at least one number, found none")
        return self

    def draw(self, rng: np.random.Generator) -> float:
        """One number. A fixed prior takes nothing from `rng`."""
        if self.fixed is not None:
            return self.fixed
        if self.uniform is not None:
            return float(rng.uniform(*self.uniform))
        if self.log_uniform is not None:
            return float(np.exp(rng.uniform(*np.log(self.log_uniform))))
        if self.choice is not None:
            return float(rng.choice(self.choice))
        assert self.normal is not None
        return float(rng.normal(*self.normal))

    def bounds(self) -> tuple[float, float]:
        """The range of possible numbers; of a normal prior, five standard deviations."""
        if self.normal is not None:
            mean, deviation = self.normal
            return mean - 5 * deviation, mean + 5 * deviation
        if self.fixed is not None:
            return self.fixed, self.fixed
        if self.choice is not None:
            return min(self.choice), max(self.choice)
        found = self.uniform or self.log_uniform
        assert found is not None
        return found

    def require(self, name: str, low: float, high: float = np.inf) -> None:
        """Raise `ValueError` if the prior can give a number outside [low, high]."""
        found = self.bounds()
        if found[0] < low or found[1] > high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, found {found[0]:g} to {found[1]:g}")


def uniform(low: float, high: float) -> Prior:
    """Shorthand for defaults in code."""
    return Prior(uniform=(low, high))


def log_uniform(low: float, high: float) -> Prior:
    """Shorthand for defaults in code."""
    return Prior(log_uniform=(low, high))


def normal(mean: float, standard_deviation: float) -> Prior:
    """Shorthand for defaults in code."""
    return Prior(normal=(mean, standard_deviation))
