"""Simulators behind one small interface (`base.System`), in the order of the table. A new one is a file and a line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .base import System, Task

__all__ = ["SYSTEMS", "SystemEntry", "make_system"]


@dataclass(frozen=True)
class SystemEntry:
    """Where a simulator is, what it is given, and what must be installed for it."""

    module: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    install: str = ""

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


_CAUSTICS = "pip install caustics==1.7.1"
_JAXTRONOMY = "pip install jax && pip install --no-deps jaxtronomy==0.1.5"  # it pins another lenstronomy
SYSTEMS: Mapping[str, SystemEntry] = {
    "lenstronomy": SystemEntry("lenstronomy", "ImageModelTwice"),
    "lenstronomy-rays-once": SystemEntry("lenstronomy", "RaysOnce"),
    "lenstronomy-best": SystemEntry("lenstronomy", "RaysOnce", {"epl": "EPL_NUMBA"}),
    "caustics-torch": SystemEntry("caustics", "CausticsTorch", {}, ("caustics",), _CAUSTICS),
    "caustics-jax": SystemEntry("caustics", "CausticsJax", {}, ("caustics", "jax"), f"{_CAUSTICS} jax"),
    "jaxtronomy": SystemEntry("jaxtronomy", "Jaxtronomy", {}, ("jax", "jaxtronomy"), _JAXTRONOMY),
    "sharplens": SystemEntry("sharplens", "Sharplens"),
    "sharplens-float64-exact": SystemEntry("sharplens", "Sharplens", {"dtype": "float64", "exact": True}),
}


def make_system(name: str, task: Task, seed: int, **options: Any) -> System:
    """The simulator `name`, ready for `task`; `options` are its own, on top of those of its entry."""
    entry = SYSTEMS[name]
    made: System = getattr(import_module(f".{entry.module}", __name__), entry.class_name)(
        task, seed, **{**entry.options, **options}
    )
    return made
