"""Scenes side by side: from lists of named models to arrays with one row a scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from ..errors import InputError
from ..profiles.macro import MACRO_PROFILES
from ..profiles.radial import RADIAL_PROFILES
from ..scene import Scene

POSITIONS = ("center_x", "center_y", "ra_0", "dec_0")
"""Parameters that are zero where they are not given, as in lenstronomy."""


@dataclass(frozen=True)
class Slot:
    """One model of every scene: `values` (B, parameters). In a scene without it, its strength is zero."""

    name: str
    parameters: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Perturbers:
    """All perturbers of one profile: of scene `row` (P,), at `center` (P,2), with `values` (P, parameters)."""

    name: str
    row: np.ndarray
    center: np.ndarray
    values: np.ndarray


def parameter_row(name: str, parameters: Sequence[str], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """The values of `parameters`, in order. Raises `InputError` if one is missing."""
    try:
        return tuple(kwargs[one] if one in kwargs or one not in POSITIONS else 0.0 for one in parameters)
    except KeyError as error:
        raise InputError(f"model {name}: parameter {error.args[0]!r} is missing; found {sorted(kwargs)}") from None


def pack_slots(
    models: Sequence[Sequence[tuple[str, Mapping[str, Any]]]],
    parameters: Mapping[str, tuple[str, ...]],
    strengths: Mapping[str, tuple[str, ...]],
) -> list[Slot]:
    """Models (name, kwargs) of B scenes: the n-th model of a name is in the same slot for all of them."""
    found: dict[tuple[str, int], dict[int, tuple[float, ...]]] = {}
    for row, of_scene in enumerate(models):
        seen: dict[str, int] = {}
        for name, kwargs in of_scene:
            number = seen[name] = seen.get(name, -1) + 1
            found.setdefault((name, number), {})[row] = parameter_row(name, parameters[name], kwargs)
    slots = []
    for (name, _), rows in found.items():
        values = np.repeat(np.array([next(iter(rows.values()))]), len(models), 0)
        absent = [row for row in range(len(models)) if row not in rows]
        values[np.ix_(absent, [parameters[name].index(one) for one in strengths[name]])] = 0.0
        values[list(rows)] = np.array(list(rows.values()))
        slots.append(Slot(name, parameters[name], values))
    return slots


def pack_macro(scenes: Sequence[Scene]) -> list[Slot]:
    """The smooth lens models of the scenes."""
    models = [
        [
            (name, kwargs)
            for name, kwargs in zip(scene.lens_model_list, scene.kwargs_lens, strict=True)
            if name in MACRO_PROFILES
        ]
        for scene in scenes
    ]
    return pack_slots(
        models,
        {name: profile.parameters for name, profile in MACRO_PROFILES.items()},
        {name: profile.strengths for name, profile in MACRO_PROFILES.items()},
    )


LIGHT_PARAMETERS = {
    "SERSIC": ("amp", "R_sersic", "n_sersic", "center_x", "center_y"),
    "SERSIC_ELLIPSE": ("amp", "R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y"),
}
"""Light that is computed for all scenes at once; other models are computed scene by scene."""

LightModels = list[tuple[str, Mapping[str, Any]]]


def light_slots(models: Sequence[Sequence[tuple[str, Mapping[str, Any]]]]) -> tuple[list[Slot], list[LightModels]]:
    """Slots of the light models of B scenes, and what is left to each scene."""
    smooth = [[one for one in of_scene if one[0] in LIGHT_PARAMETERS] for of_scene in models]
    rest = [[one for one in of_scene if one[0] not in LIGHT_PARAMETERS] for of_scene in models]
    return pack_slots(smooth, LIGHT_PARAMETERS, dict.fromkeys(LIGHT_PARAMETERS, ("amp",))), rest


def pack_perturbers(scenes: Sequence[Scene]) -> list[Perturbers]:
    """The axisymmetric perturbers of the scenes, by profile. Raises `InputError` for a model that we do not have."""
    found: dict[str, tuple[list[int], list[Mapping[str, Any]]]] = {}
    for row, scene in enumerate(scenes):
        for name in dict.fromkeys(scene.lens_model_list):
            if name not in MACRO_PROFILES:
                owners, entries = found.setdefault(name, ([], []))
                own = [
                    one for label, one in zip(scene.lens_model_list, scene.kwargs_lens, strict=True) if label == name
                ]
                owners += [row] * len(own)
                entries += own
    packed = []
    for name, (owners, entries) in found.items():
        if name not in RADIAL_PROFILES:
            known = ", ".join([*MACRO_PROFILES, *RADIAL_PROFILES])
            raise InputError(f"lens model {name!r} is not in the torch engine ({known}); use --engine lenstronomy")
        parameters = (*RADIAL_PROFILES[name].parameters, "center_x", "center_y")
        try:  # thousands of halos: the fast way first
            values = np.fromiter(chain.from_iterable(map(itemgetter(*parameters), entries)), float)
        except KeyError:
            values = np.array([parameter_row(name, parameters, kwargs) for kwargs in entries])
        table = values.reshape(len(entries), len(parameters))
        packed.append(Perturbers(name, np.array(owners), table[:, -2:], table[:, :-2]))
    return packed
