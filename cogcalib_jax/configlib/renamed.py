"""Fields with a new name, which are read under their old name for one release."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """The new name of a field."""

    path: str
    """dotted path of the field today"""
    values: Mapping[str, str] = field(default_factory=dict)
    """old value -> new value, for values that changed"""

    def value(self, old: Any) -> Any:
        """Return the value today of what was given as `old`."""
        return type(old)(self.values[old]) if isinstance(old, str) and old in self.values else old


_RENAMED: dict[str, Renamed] = {}


def rename(old: str, new: str, values: Mapping[str, str] | None = None) -> None:
    """Read the dotted path `old` as `new` in presets, stored configs and on the command line."""
    _RENAMED[old] = Renamed(new, values or {})


def renamed(path: str) -> Renamed | None:
    """Return the new name of the field `path`, None if it kept its name."""
    return _RENAMED.get(path)


def was_section(path: str) -> bool:
    """Return whether `path` was a section whose fields have other paths today."""
    return any(old.startswith(f"{path}.") for old in _RENAMED)


def renamed_from(name: str) -> list[str]:
    """Return the paths today of fields whose own name, without the section, was `name`."""
    return [new.path for old, new in _RENAMED.items() if old.rpartition(".")[2] == name]


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path of nested dicts."""
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def get(tree: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a dotted path of nested dicts, None if nothing does."""
    found: Any = tree
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def with_new_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that a run stored, under the names of today."""
    stored = deepcopy(stored)
    for old, new in _RENAMED.items():
        section, _, name = old.rpartition(".")
        inside = get(stored, section) if section else stored
        if isinstance(inside, dict) and name in inside:
            put(stored, new.path, new.value(inside.pop(name)))
            if not inside and "." in section:
                above, _, emptied = section.rpartition(".")
                del get(stored, above)[emptied]
    return stored
