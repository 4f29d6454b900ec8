"""The settings that two runs must share, read from the marks on the fields of a config.

Fields are marked where they are defined (`setting`), so that no room lists the fields of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

from cogcalib_jax.configlib.fields import Field, fields
from cogcalib_jax.configlib.presets import to_dict
from cogcalib_jax.configlib.renamed import get

AnyConfig = TypeVar("AnyConfig")

_RETIRED: set[str] = set()


def identity(config: Any) -> dict[str, Any]:
    """Return the part of a config that must be equal for its work to be continued, as JSON.

    Left out are fields with `affects_identity=False`, places, and fields that were `added` and
    still have their default.
    """
    return _part(config, _in_identity)


def style_identity(config: Any) -> dict[str, Any]:
    """Return the part of `identity` that style adaptation depends on, as JSON."""
    return _part(config, _in_style)


def places(config: Any) -> dict[str, Any]:
    """Return dotted path -> value of every field that is a place."""
    return {path: _value(config, path) for path in marked_paths(type(config), "place")}


def with_places_of(config: AnyConfig, other: AnyConfig) -> AnyConfig:
    """Return `config` with every place as `other`, of the same class, has it."""
    changed = {}
    for field in fields(type(config)):
        mine, theirs = getattr(config, field.name), getattr(other, field.name)
        if field.place:
            changed[field.name] = theirs
        elif field.is_section:
            changed[field.name] = with_places_of(mine, theirs)
    return dataclasses.replace(config, **changed)


def marked_paths(cls: type, mark: str) -> tuple[str, ...]:
    """Return the dotted paths of the fields of `cls` whose `mark` (of `setting`) is true."""
    found: list[str] = []
    for field in fields(cls):
        if field.is_section:
            found += [f"{field.name}.{path}" for path in marked_paths(field.kind, mark)]
        elif getattr(field, mark):
            found.append(field.name)
    return tuple(found)


def retire(*paths: str) -> None:
    """Ignore these dotted paths in identities that were stored: earlier releases compared them."""
    _RETIRED.update(paths)


def without_retired(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored identity without the paths that `retire` named."""
    stored = deepcopy(stored)
    for path in _RETIRED:
        section, _, name = path.rpartition(".")
        inside = get(stored, section) if section else stored
        if isinstance(inside, dict):
            inside.pop(name, None)
    return stored


def _part(config: Any, wanted: Callable[[Field, Any], bool]) -> dict[str, Any]:
    part = to_dict(config)
    for field in fields(type(config)):
        if not wanted(field, config):
            del part[field.name]
        elif field.is_section:
            part[field.name] = _part(getattr(config, field.name), wanted)
    return part


def _in_identity(field: Field, owner: Any) -> bool:
    if field.added:
        default = field.kind() if field.is_section else field.default
        if getattr(owner, field.name) == default:
            return False
    return field.affects_identity and not field.place


def _in_style(field: Field, owner: Any) -> bool:
    seen = field.affects_style
    if isinstance(seen, str):
        seen = getattr(owner, seen) is None
    return seen and _in_identity(field, owner)


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config
