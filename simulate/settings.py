"""Strict settings: a frozen typed class beside its owner, read from YAML; a typo is an error with a suggestion."""

import difflib
import types
import typing
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError


class Settings(BaseModel):
    """Base of every settings class: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SettingsType = TypeVar("SettingsType", bound=Settings)


class _StrictLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises `InputError` if the file is missing, is no mapping, or gives a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    content = _parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content


def apply_overrides(content: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `content` with each `section.key=value` of `overrides` set; values are YAML.

    A part that is a whole number indexes a list (`train.models.0.size=full`).
    """
    result: Any = _copy(content)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {override}: expected section.key=value")
        place = result
        *parents, last = key.strip().split(".")
        for part in parents:
            if isinstance(place, list):
                place = place[_list_index(place, part, override)]
            else:
                if place.get(part) is None:
                    place[part] = {}
                place = place[part]
            if not isinstance(place, dict | list):
                raise InputError(f"--set {override}: {part!r} is a value, not a section")
        value = _parse_yaml(text, f"--set {override}")
        if isinstance(place, list):
            place[_list_index(place, last, override)] = value
        else:
            place[last] = value
    return result


def _copy(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _copy(value) for key, value in content.items()}
    return [_copy(value) for value in content] if isinstance(content, list) else content


def _list_index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise InputError(f"--set {override}: {part!r} should be an index from 0 to {len(place) - 1}")
    return int(part)


def parse_settings(kind: type[SettingsType], content: Any, source: str) -> SettingsType:
    """Check `content` against `kind`. Raises `InputError` that names each wrong key, with the nearest right one."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(kind, detail) for detail in error.errors()]
        raise InputError(f"{source}: " + "; ".join(lines)) from None


def _explain(kind: type[Settings], detail: Any) -> str:
    location = [part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    place = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = sorted(_known_keys(kind, location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {place!r} ({hint})"
    if detail["type"] == "missing":
        return f"key {place!r} is missing"
    found = detail["input"]
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    text = f"{place!r}: " if place else ""
    return f"{text}expected {message}, found {found!r}" if detail["type"] != "value_error" else f"{text}{message}"


def _known_keys(kind: Any, location: Iterable[Any]) -> set[str]:
    """Field names that are valid at `location` below `kind`, over all members of unions on the way."""
    kinds = [kind]
    for part in location:
        kinds = [inner for outer in kinds for inner in _step_into(outer, part)]
    return {name for one in kinds if _is_settings(one) for name in one.model_fields}


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _step_into(kind: Any, part: Any) -> list[Any]:
    if _is_settings(kind):
        if part in kind.model_fields:
            return _flatten(kind.model_fields[part].annotation)
        return [kind]  # a discriminator tag of a union, not a field
    return _flatten(kind)


def _flatten(annotation: Any) -> list[Any]:
    """The settings classes inside an annotation such as `tuple[A | B, ...]` or `dict[str, A]`."""
    origin = typing.get_origin(annotation)
    if origin is None:
        return [annotation]
    if origin in (typing.Union, types.UnionType) or origin in (list, tuple, dict, typing.Annotated):
        return [one for inner in typing.get_args(annotation) for one in _flatten(inner)]
    return [annotation]
