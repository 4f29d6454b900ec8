"""A config built once from its defaults, a preset and the command line, and its `--help`."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import logging
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from cogcalib_jax.configlib.sources import (
    SOURCE,
    Arguments,
    Given,
    Tree,
    read_file,
    read_tree,
    split_arguments,
)
from cogcalib_jax.configlib.values import Refused, convert, metavar, plain, show
from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.settings import fields, get, leaves, put

log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A config and its sources."""

    config: ConfigT
    """the merged and validated config"""
    explicit: frozenset[str]
    """dotted paths given on the command line"""
    preset: Path | None
    """the preset that was read, if any"""


def load_config(
    cls: type[ConfigT],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    default_preset: str | Path | None = None,
    start: ConfigT | None = None,
) -> Loaded[ConfigT]:
    """Read a preset, lay the command line over it, and build `cls` once from the result.

    Only merged values are converted and checked, so an option may replace a bad value of a preset.

    Args:
        cls: a frozen dataclass; fields that are dataclasses are sections.
        argv: the arguments without the program's name: `--config FILE`, `--help`, and any field
            by its dotted path, hyphens and underscores being the same.
        default_preset: the preset without `--config`; None: the defaults.
        start: a config with the values that neither preset nor command line gives; None: the
            defaults of `cls`.

    Raises:
        UserError: one line naming source, field, value and what is allowed.
        SystemExit: with code 0, after `--help` was printed.
    """
    arguments = split_arguments(cls, argv)
    preset = arguments.preset
    if preset is None and default_preset is not None:
        preset = _default(Path(default_preset), arguments.wants_help)
    given = _given(cls, arguments, preset)
    if arguments.wants_help:
        _print_help(
            cls,
            given,
            prog=prog,
            description=description,
            preset=preset,
            everything=arguments.wants_everything,
        )
        raise SystemExit(0)
    config = _build(cls, given, base=MISSING if start is None else start)
    for path, value in _with_old_names(given):
        log.info(
            "note: %s: %s is now %s (read as %s); the old name is read in this release only",
            *(value.source, value.old_name, path, show(value.value)),
        )
    return Loaded(
        config=config,
        explicit=frozenset(arguments.words),
        preset=None if preset is None else Path(preset),
    )


def _default(preset: Path, wants_help: bool) -> Path | None:
    """Return the preset that is read without `--config`; for the help None if it is missing."""
    if preset.is_file():
        return preset
    if wants_help:
        return None
    raise UserError(
        f"{SOURCE}: config is not given and {preset} is not there; choose a preset with --config"
        " FILE, such as configs/own_questions.yaml of the source"
    )


def given_values(cls: type, argv: Sequence[str]) -> dict[str, Any]:
    """Return dotted path -> value of every field that `--config` or the command line gives.

    Values have their field's type; ranges and other fields are not checked.

    Raises:
        UserError: as `load_config`, for source and type alone.
    """
    arguments = split_arguments(cls, argv)
    given = _given(cls, arguments, arguments.preset)
    values = {}
    for path, kind in leaves(cls):
        found = get(given, path)
        if isinstance(found, Given):
            values[path] = _convert(kind, found, path)
    return values


def _given(cls: type, arguments: Arguments, preset: str | Path | None) -> Tree:
    """Return the preset with the command line laid over it."""
    given = {} if preset is None else read_tree(cls, read_file(str(preset)), str(preset))
    if arguments.wants_help:
        return given
    for path, word in arguments.words.items():
        put(given, path, Given(plain(word), SOURCE, arguments.old_names.get(path)))
    return given


def _with_old_names(given: Tree, prefix: str = "") -> Iterator[tuple[str, Given]]:
    """Yield dotted path -> value of what was given under an old name."""
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _with_old_names(value, f"{prefix}{name}.")
        elif value.old_name is not None:
            yield prefix + name, value


def from_yaml(cls: type[ConfigT], text: str, source: str | Path) -> ConfigT:
    """Build `cls` from YAML text; `source` names the text in errors (UserError)."""
    return _build(cls, read_tree(cls, text, str(source)))


def _build(cls: type, given: Tree, prefix: str = "", base: Any = MISSING) -> Any:
    """Build `cls` from the values that were given, and from `base` or the class for the rest."""
    values = {}
    for field in fields(cls, base):
        path = prefix + field.name
        if field.is_section:
            inside = given.get(field.name, {})
            values[field.name] = _build(field.kind, inside, f"{path}.", field.default)
        elif field.name in given:
            values[field.name] = _convert(field.kind, given[field.name], path)
        elif field.default is MISSING:
            raise UserError(
                f"{path}: is required; give --{path} {metavar(field.kind)}, or set it in a preset"
            )
        else:
            values[field.name] = field.default
    try:
        return cls(**values)
    except FieldError as error:
        found, value = given, values
        for part in error.field.split("."):
            found = found.get(part, {})
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        if not found and (value is None or value == ()):
            raise UserError(f"{prefix}{error.field}: not given; {error.message}") from error
        found = found or Given(value, "default")
        raise _refusal(found, prefix + error.field, error.message) from error


def _convert(kind: Any, given: Given, path: str) -> Any:
    try:
        return convert(kind, given.value)
    except Refused as refused:
        raise _refusal(given, path, f"must be {refused}") from refused


def _refusal(given: Given, path: str, message: str) -> UserError:
    return UserError(f"{given.source}: {path} = {show(given.value)}: {message}")


def _print_help(
    cls: type,
    given: Tree,
    *,
    prog: str,
    description: str,
    preset: str | Path | None,
    everything: bool,
) -> None:
    """Print the fields of `cls` with type, default after the preset, and doc line.

    tyro makes the layout. It gets a copy of the config in which every field is text, because the
    syntax it shows for the config itself (`--no-resume`) is not the one that is read here.

    everything: also the fields that are not marked as `often`.
    """
    everything = everything or not any(field.often for field in fields(cls))
    if not everything:
        description += "\n\nThese settings are changed most often; --help-all shows every one."
    option = _option("FILE", "Preset: a name, or a YAML file. Other options override it.", preset)
    mirror = _mirror(cls, given, dataclasses.MISSING, everything, config=option)
    with contextlib.suppress(SystemExit):
        tyro.cli(mirror, prog=prog, description=description, args=["--help"])
    # Now rather than while the interpreter shuts down: a closed pipe can still be handled.
    sys.stdout.flush()


def _mirror(cls: type, given: Tree, base: Any, everything: bool, **first: Any) -> type:
    docs = field_docs(cls)
    # What a program adds to the config of another one is what its own help is read for.
    inherits = any(dataclasses.is_dataclass(base) for base in cls.__bases__)
    own = set(vars(cls).get("__annotations__", ())) if inherits else set()
    members = [(name, annotation, "") for name, annotation in first.items()]
    for field in fields(cls, base):
        doc = docs.get(field.name, "")
        if field.registry is not None:
            doc += f" ({field.registry.kind}s: {', '.join(field.registry.listed())})"
        if field.is_section:
            if not (everything or any(inner.often for inner in fields(field.kind))):
                continue
            section = _mirror(field.kind, given.get(field.name, {}), field.default, everything)
            annotation = Annotated[section, tyro.conf.arg(help=doc)]
            default = dataclasses.field(default_factory=section)
            members.append((field.name, annotation, default))
        elif everything or field.often or field.name in own:
            value = given[field.name].value if field.name in given else field.default
            members.append((field.name, _option(metavar(field.kind), doc, value), ""))
    return dataclasses.make_dataclass(cls.__name__, members)


def _option(name: str, doc: str, default: Any) -> Any:
    hint = "(required)" if default is dataclasses.MISSING else f"(default: {show(default)})"
    return Annotated[str, tyro.conf.arg(metavar=name, help=doc, help_behavior_hint=hint)]


def field_docs(cls: type) -> dict[str, str]:
    """Return field name -> the string under the field, on one line."""
    docs = {}
    for owner in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for statement, following in zip(body, body[1:], strict=False):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(doc))),
                ):
                    docs[name] = " ".join(doc.split())
    return docs
