"""A preset, the command line laid over it, and the config built once from both."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cogcalib_jax.configlib.command_line import SOURCE, Arguments, split_arguments
from cogcalib_jax.configlib.fields import FieldError, fields, leaves
from cogcalib_jax.configlib.help import print_help
from cogcalib_jax.configlib.presets import Given, Tree, read_file, read_tree
from cogcalib_jax.configlib.renamed import get, put
from cogcalib_jax.configlib.values import Refused, convert, metavar, plain, show
from cogcalib_jax.errors import UserError

log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A config and where it came from."""

    config: ConfigT
    """The merged and validated config."""
    explicit: frozenset[str]
    """Dotted paths given on the command line."""
    preset: Path | None
    """The preset file that was read, if any."""


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

    Only merged values are converted and checked, so an override may mend a bad value of the
    preset; unknown keys and unreadable files it cannot mend.

    Args:
        cls: a frozen dataclass; fields that are dataclasses are sections.
        argv: the arguments without the program's name: `--config FILE`, `--help`, and any field
            by its dotted path, hyphens and underscores being the same.
        prog: the program's name in the help.
        description: the text above the options in the help.
        default_preset: the preset where `--config` is absent; None starts from the defaults.
        start: a config whose values stand wherever neither preset nor command line gives one;
            None: the defaults of `cls`.

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
        print_help(
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
    """The preset that is read without `--config`; a program outside a checkout has none."""
    if preset.is_file():
        return preset
    if wants_help:
        return None
    raise UserError(
        f"{SOURCE}: config is not given and {preset} is not there; choose a preset with --config"
        " FILE, such as configs/own_questions.yaml of the source"
    )


def given_values(cls: type, argv: Sequence[str]) -> dict[str, Any]:
    """Dotted path -> value of every field that `--config` or the command line gives.

    For programs whose defaults depend on what was given: values have their field's type, but
    nothing is checked against its range or against other fields.

    Raises:
        UserError: as `load_config`, of source and type alone.
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
    """The preset with the command line laid over it."""
    given = {} if preset is None else read_tree(cls, read_file(str(preset)), str(preset))
    if arguments.wants_help:
        return given
    for path, word in arguments.words.items():
        put(given, path, Given(plain(word), SOURCE, arguments.old_names.get(path)))
    return given


def _with_old_names(given: Tree, prefix: str = "") -> Iterator[tuple[str, Given]]:
    """Dotted path -> value of what was given under an old name."""
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _with_old_names(value, f"{prefix}{name}.")
        elif value.old_name is not None:
            yield prefix + name, value


def from_yaml(cls: type[ConfigT], text: str, source: str | Path) -> ConfigT:
    """Build `cls` from YAML text; `source` names the text in errors (UserError)."""
    return _build(cls, read_tree(cls, text, str(source)))


def _build(cls: type, given: Tree, prefix: str = "", base: Any = MISSING) -> Any:
    """Convert what was given, take the rest from `base` or the class, and let `cls` check it."""
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
