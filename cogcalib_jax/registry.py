"""Names for dataclasses whose fields are settings, and specs such as "focal(gamma=3)".

Config checks, help, comparisons, tuning, tables and tests read their lists of names from here.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from cogcalib_jax.errors import UserError

T = TypeVar("T")

# Fields of these types are settings. A float is a leaf of the pytree: it enters a jitted function
# as an argument, so another value compiles nothing. The others are part of the structure.
_FIELD_TYPES = {"float": float, "int": int, "str": str, "bool": bool}


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered class."""

    name: str
    cls: type[T]
    label: str
    """the name in tables and legends"""
    facts: dict[str, Any]
    """other keyword arguments of `register`"""

    @property
    def summary(self) -> str:
        """The first paragraph of the class's docstring."""
        return " ".join((inspect.getdoc(self.cls) or "").partition("\n\n")[0].split())

    @property
    def settings(self) -> str:
        """The fields with their defaults as in a spec, such as "gamma=2.0"."""
        return ", ".join(f"{f.name}={f.default}" for f in fields(self.cls))


class Registry(Generic[T]):
    """Dataclasses by name: frozen, unless they keep fitted values beside their settings."""

    def __init__(self, kind: str, *, module: str | None = None, fitted: bool = False) -> None:
        """Make an empty registry.

        Args:
            module: defines the project's own entries; imported when a name is first looked up.
            fitted: whether values are fitted to data: such classes are neither frozen nor pytrees.
        """
        self.kind = kind
        self.fitted = fitted
        self._module = module
        self._registered: dict[str, Entry[T]] = {}

    @property
    def _entries(self) -> dict[str, Entry[T]]:
        if self._module is not None:
            import_module(self._module)
        return self._registered

    def register(self, name: str, *, label: str, **facts: Any) -> Callable[[type[T]], type[T]]:
        """Return a decorator that registers a class under `name`.

        The class becomes a dataclass, unless it is one already. Unless its values are fitted, it is
        frozen and a pytree: its floats are leaves, its other settings structure.

        Args:
            name: lower-case letters, digits and underscores; specs and folders begin with it.
            label: the name in tables and legends.
            facts: kept with the entry.

        Raises:
            ValueError: the name is taken or malformed, or the class has a field that is not a
                float, integer, string or boolean with a default.
        """
        if not (name.isidentifier() and name == name.lower()):
            raise ValueError(
                f"{self.kind} name is {name!r}; expected lower-case letters, digits and _"
            )

        def add(cls: type[T]) -> type[T]:
            taken = self._entries.get(name)
            # A notebook cell that runs again defines its class anew.
            if taken and _place(taken.cls) != _place(cls):
                raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
            if taken and taken.cls is cls:
                return cls
            if "__dataclass_params__" not in vars(cls):
                # Settings do not distinguish two fitted values, so these compare by identity.
                cls = dataclass(frozen=not self.fitted, eq=not self.fitted)(cls)
            _requires(cls, frozen=not self.fitted)
            if not self.fitted:
                # Imported here: reading names and specs needs no JAX.
                import jax

                numbers = [f.name for f in fields(cls) if _type_of(f) is float]
                others = [f.name for f in fields(cls) if _type_of(f) is not float]
                jax.tree_util.register_dataclass(cls, data_fields=numbers, meta_fields=others)
            self._registered[name] = Entry(name, cls, label, facts)
            return cls

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())

    def __getitem__(self, name: str) -> Entry[T]:
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return the names in the order of registration."""
        return tuple(self._entries)

    def listed(self) -> tuple[str, ...]:
        """Return the names for a help text, which needs no JAX.

        While the module of the project's own entries is not imported, its decorators are read.
        """
        if self._module is None or self._module in sys.modules:
            return self.names()
        source = Path(find_spec(self._module).origin).read_text(encoding="utf-8")
        return tuple(
            call.args[0].value
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef)
            for call in node.decorator_list
            if isinstance(call, ast.Call) and call.func.id == f"register_{self.kind}"
        )

    def entry_of(self, value: T) -> Entry[T]:
        """Return the entry of a value's class."""
        return next(entry for entry in self if entry.cls is type(value))

    def make(self, spec: str | T) -> T:
        """Return the value that `spec` describes: "ls", "focal(gamma=3)", or a value itself.

        Raises:
            UserError: an unknown name or setting, or a value that the setting refuses.
        """
        if not isinstance(spec, str):
            return self._checked(spec, repr(spec))
        name, settings = split_spec(spec)
        if name not in self._entries:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{self.kind} is {spec!r}; expected one of {', '.join(self.names())}{hint}"
            )
        entry = self._entries[name]
        known = {f.name: f for f in fields(entry.cls)}
        values = {}
        for key, text in settings.items():
            if key not in known:
                allowed = f"expected {entry.settings}" if known else "it has no settings"
                raise UserError(
                    f"{self.kind} is {spec!r}; {name} has no setting {key!r}; {allowed}"
                )
            values[key] = _parse(text, _type_of(known[key]), f"{self.kind} is {spec!r}: {key}")
        return self._checked(entry.cls(**values), spec)

    def _checked(self, value: T, spec: str) -> T:
        if type(value) not in {entry.cls for entry in self}:
            raise UserError(
                f"{self.kind} is {spec}; expected one of {', '.join(self.names())}, or a value of a"
                f" registered class; register the class first"
            )
        if check := getattr(value, "check", None):
            try:
                check()
            except ValueError as error:
                raise UserError(f"{self.kind} is {spec!r}: {error}") from error
        return value

    def spec(self, value: T) -> str:
        """Return the spec of `value`, with the settings that differ from the default."""
        entry = self.entry_of(value)
        settings = [
            f"{f.name}={_show(getattr(value, f.name))}"
            for f in fields(entry.cls)
            if getattr(value, f.name) != f.default
        ]
        return entry.name + (f"({', '.join(settings)})" if settings else "")


def require(condition: bool, name: str, value: float | str, expected: str) -> None:
    """Raise ValueError unless `condition` holds; for `check` of a registered class."""
    if not condition:
        shown = value if isinstance(value, str) else f"{value:g}"
        raise ValueError(f"{name} is {shown}; expected {expected}")


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Return the name and the settings of "name(key=value, ...)" (UserError: another form)."""
    text = spec.strip()
    name, opened, inside = text.partition("(")
    if bool(opened) != text.endswith(")") or ("(" in inside or inside.count(")") > 1):
        raise UserError(f"{spec!r} is no spec; expected NAME or NAME(SETTING=VALUE, ...)")
    settings: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in inside.rstrip(")").split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip() or key.strip() in settings:
            raise UserError(f"{spec!r}: {part!r} is no setting; expected SETTING=VALUE, each once")
        settings[key.strip()] = value.strip()
    return name.strip(), settings


def split_outside(text: str, separator: str) -> list[str]:
    """Split `text` at each `separator` that is outside parentheses and square brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _place(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _requires(cls: type, *, frozen: bool) -> None:
    if cls.__dataclass_params__.frozen != frozen or any(
        _type_of(f) is None or not _has_default(f) for f in fields(cls)
    ):
        raise ValueError(
            f"{cls.__name__} is no class of settings; expected a dataclass that is"
            f" {'' if frozen else 'not '}frozen, whose fields are float, int, str or bool and have"
            " defaults"
        )


def _type_of(field: Field) -> type | None:
    """Return the type of a setting; None for another type."""
    if isinstance(field.type, str):
        return _FIELD_TYPES.get(field.type)
    return field.type if field.type in _FIELD_TYPES.values() else None


def _has_default(field: Field) -> bool:
    return isinstance(field.default, float | int | str | bool)


def _parse(text: str, kind: type | None, where: str) -> Any:
    if kind is str:
        return text.strip("\"'")
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        value = None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        words = {float: "a finite number", int: "a whole number", bool: "true or false"}
        raise UserError(f"{where} is {text}; expected {words[kind]}")
    return value


def _show(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
