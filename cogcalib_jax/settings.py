"""The fields of config dataclasses: marks, former names, and what two runs must share.

A field carries its marks where it is defined (`setting`), so that no room lists the fields of
another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from cogcalib_jax.registry import Registry

AnyConfig = TypeVar("AnyConfig")

Role = Literal[
    "",
    "seed",
    "folder",  # where the results lie
    "resume",
    "dry_run",
    "adapter",  # that a run starts from
    "comparison",
    "methods",  # term and gate
    "weights",
    "processes",
]
"""what a field decides in a run, for programs that are built on runs"""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    **marks: Any,
) -> Any:
    """Return a dataclass field with marks, which are attributes of `Field`.

    default_factory: as `dataclasses.field` takes it; for a section its class.
    """
    return dataclasses.field(default=default, default_factory=default_factory, metadata=marks)


def often(default: Any, **marks: Any) -> Any:
    """Return a `setting` that `--help` shows."""
    return setting(default, often=True, **marks)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config dataclass; its marks come after `default`."""

    name: str
    kind: Any
    """the type, resolved"""
    default: Any
    """`dataclasses.MISSING` for a required value, and for a section that starts from its class"""
    often: bool = False
    """whether `--help` shows the field; `--help-all` shows all of them"""
    affects_identity: bool = True
    """whether the command that starts a run and the one that resumes it must agree on it"""
    affects_style: bool | str = True
    """whether style adaptation depends on it; the name of a field beside it: only while that one is
    unset"""
    affects_questions: bool = True
    """whether test questions, or the form in which they are asked, depend on it"""
    place: bool = False
    """whether it is a path that may move, because its content is compared by hash"""
    added: bool = False
    """whether identities of earlier releases lack it, with the default as its value"""
    of_adapter: bool = False
    """whether a stored adapter states it"""
    registry: Registry | None = None
    """lists the names that the help shows"""
    role: Role = ""
    """what it decides for programs that are built on runs"""

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.kind)


def fields(cls: type, base: Any = dataclasses.MISSING) -> list[Field]:
    """Return the fields of a config dataclass, with defaults from the instance `base` if given.

    Those marked `option=False` are left out: programs set them, and no file of ours holds them.
    """
    hints = get_type_hints(cls)

    def default(field: dataclasses.Field) -> Any:
        if base is not dataclasses.MISSING:
            return getattr(base, field.name)
        # A section that is just `Section()` starts from its class: an instance may already carry
        # values that its __post_init__ derived from others, which an override may contradict.
        if field.default_factory in (dataclasses.MISSING, hints[field.name]):
            return field.default
        return field.default_factory()

    return [
        Field(field.name, hints[field.name], default(field), **field.metadata)
        for field in dataclasses.fields(cls)
        if field.init and field.metadata.get("option", True)
    ]


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, type) of every field that is not a section, in order."""
    for field in fields(cls):
        if field.is_section:
            yield from leaves(field.kind, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.kind


def marked_paths(cls: type, mark: str, value: Any = True) -> tuple[str, ...]:
    """Return the dotted paths of the fields of `cls` whose `mark` (of `setting`) is `value`."""
    found: list[str] = []
    for field in fields(cls):
        if field.is_section:
            found += [f"{field.name}.{path}" for path in marked_paths(field.kind, mark, value)]
        elif getattr(field, mark) == value:
            found.append(field.name)
    return tuple(found)


def by_path(cls: type, by_role: Mapping[Role, str]) -> dict[str, str]:
    """Return dotted path -> text of every field of `cls` whose role has a text."""
    return {
        path: text for role, text in by_role.items() for path in marked_paths(cls, "role", role)
    }


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts of what YAML and JSON hold (tuples as lists, paths as
    str)."""

    def simple(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        if isinstance(value, tuple):
            return [simple(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: simple(getattr(config, field.name)) for field in fields(type(config))}


def get(tree: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of nested dicts; None if there is none."""
    found: Any = tree
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of nested dicts."""
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


@dataclasses.dataclass(frozen=True)
class Renamed:
    """The new name of a field."""

    path: str
    """dotted path of the field today"""
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """old value -> new value, for values that changed"""

    def value(self, old: Any) -> Any:
        """Return the value today of what was given as `old`."""
        return type(old)(self.values[old]) if isinstance(old, str) and old in self.values else old


_RENAMED: dict[str, Renamed] = {}


def rename(old: str, new: str, values: Mapping[str, str] | None = None) -> None:
    """Read the dotted path `old` as `new` in presets, stored configs and on the command line."""
    _RENAMED[old] = Renamed(new, values or {})


def renamed(path: str) -> Renamed | None:
    """Return the new name of the field `path`; None if it kept its name."""
    return _RENAMED.get(path)


def was_section(path: str) -> bool:
    """Return whether `path` was a section whose fields have other paths today."""
    return any(old.startswith(f"{path}.") for old in _RENAMED)


def renamed_from(name: str) -> list[str]:
    """Return the paths today of fields that were once called `name` in their section."""
    return [new.path for old, new in _RENAMED.items() if old.rpartition(".")[2] == name]


TAKEN: dict[str, Any] = {}
"""dotted path of a removed field -> the value that every run has now"""


def with_new_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a config that a run stored, without removed fields and with the names of today."""
    stored = deepcopy(stored)
    for path, value in TAKEN.items():
        section, _, name = path.rpartition(".")
        inside = get(stored, section)
        if isinstance(inside, dict) and name in inside and inside[name] == value:
            del inside[name]
    for old, new in _RENAMED.items():
        section, _, name = old.rpartition(".")
        inside = get(stored, section) if section else stored
        if isinstance(inside, dict) and name in inside:
            put(stored, new.path, new.value(inside.pop(name)))
            if not inside and "." in section:
                above, _, emptied = section.rpartition(".")
                del get(stored, above)[emptied]
    return stored


def identity(config: Any) -> dict[str, Any]:
    """Return the part of a config that must be equal for its work to go on, as JSON.

    Left out are fields with `affects_identity=False`, places, and fields that were `added` and
    still have their default.
    """
    return _part(config, _in_identity)


def style_identity(config: Any) -> dict[str, Any]:
    """Return the part of `identity` that style adaptation depends on, as JSON."""
    return _part(config, _in_style)


def places(config: Any) -> dict[str, Any]:
    """Return dotted path -> value of every field that is a place."""
    stored = to_dict(config)
    return {path: get(stored, path) for path in marked_paths(type(config), "place")}


def with_places_of(config: AnyConfig, other: AnyConfig) -> AnyConfig:
    """Return `config` with every place of `other`, which has the same class."""
    changed = {}
    for field in fields(type(config)):
        mine, theirs = getattr(config, field.name), getattr(other, field.name)
        if field.place:
            changed[field.name] = theirs
        elif field.is_section:
            changed[field.name] = with_places_of(mine, theirs)
    return dataclasses.replace(config, **changed)


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
