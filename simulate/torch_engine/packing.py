"""Scenes side by side: from lists of named models to arrays with one row a scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class CompactScene(Scene):
    """A scene whose perturbers are arrays instead of models: quick to send to another process, and to render there."""

    perturbers: list[Perturbers] = field(default_factory=list)


def compact(scene: Scene) -> Scene:
    """The same lens as a `CompactScene`, without its physical draw; one with several planes stays as it is."""
    if scene.lens_redshift_list:
        return scene
    smooth = [row for row, name in enumerate(scene.lens_model_list) if name in MACRO_PROFILES]
    values = {
        **vars(scene),
        "lens_model_list": [scene.lens_model_list[row] for row in smooth],
        "kwargs_lens": [scene.kwargs_lens[row] for row in smooth],
        "draw": {},
    }
    return CompactScene(**values, perturbers=pack_perturbers([scene]))


def perturber_count(scene: Scene) -> int:
    """How many perturbers (and smooth lens models) a scene has."""
    packed = scene.perturbers if isinstance(scene, CompactScene) else []
    return len(scene.lens_model_list) + sum(len(one.row) for one in packed)


def pack_perturbers(scenes: Sequence[Scene]) -> list[Perturbers]:
    """The axisymmetric perturbers of the scenes, by profile. Raises `InputError` for a model that we do not have."""
    parts: dict[str, list[Perturbers]] = {}
    for row, scene in enumerate(scenes):
        own = scene.perturbers if isinstance(scene, CompactScene) else _perturbers_of(scene)
        for one in own:
            placed = Perturbers(one.name, np.full(len(one.row), row), one.center, one.values)
            parts.setdefault(one.name, []).append(placed)
    return [
        Perturbers(
            name,
            np.concatenate([one.row for one in found]),
            np.concatenate([one.center for one in found]),
            np.concatenate([one.values for one in found]),
        )
        for name, found in parts.items()
    ]


def _perturbers_of(scene: Scene) -> list[Perturbers]:
    packed = []
    for name in dict.fromkeys(scene.lens_model_list):
        if name in MACRO_PROFILES:
            continue
        if name not in RADIAL_PROFILES:
            known = ", ".join([*MACRO_PROFILES, *RADIAL_PROFILES])
            raise InputError(f"lens model {name!r} is not in the torch engine ({known}); use --engine lenstronomy")
        models = zip(scene.lens_model_list, scene.kwargs_lens, strict=True)
        entries = [kwargs for label, kwargs in models if label == name]
        parameters = (*RADIAL_PROFILES[name].parameters, "center_x", "center_y")
        try:  # thousands of halos: the fast way first
            values = np.fromiter(chain.from_iterable(map(itemgetter(*parameters), entries)), float)
        except KeyError:
            values = np.array([parameter_row(name, parameters, kwargs) for kwargs in entries])
        table = values.reshape(len(entries), len(parameters))
        packed.append(Perturbers(name, np.zeros(len(entries), int), table[:, -2:], table[:, :-2]))
    return packed
