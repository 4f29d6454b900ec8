"""A preset, the command line laid over it, and the config built once from both."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cogcalib_jax.configlib.command_line import SOURCE, split_arguments
from cogcalib_jax.configlib.fields import FieldError, fields
from cogcalib_jax.configlib.help import print_help
from cogcalib_jax.configlib.presets import Given, Tree, read_file, read_tree
from cogcalib_jax.configlib.values import Refused, convert, metavar, plain, show
from cogcalib_jax.errors import UserError

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

    Raises:
        UserError: one line naming source, field, value and what is allowed.
        SystemExit: with code 0, after `--help` was printed.
    """
    arguments = split_arguments(cls, argv)
    preset = default_preset if arguments.preset is None else arguments.preset
    given = {} if preset is None else read_tree(cls, read_file(str(preset)), str(preset))
    if arguments.wants_help:
        print_help(cls, given, prog=prog, description=description, preset=preset)
        raise SystemExit(0)
    for path, word in arguments.words.items():
        *sections, name = path.split(".")
        level = given
        for section in sections:
            level = level.setdefault(section, {})
        level[name] = Given(plain(word), SOURCE)
    return Loaded(
        config=_build(cls, given),
        explicit=frozenset(arguments.words),
        preset=None if preset is None else Path(preset),
    )


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
            try:
                values[field.name] = convert(field.kind, given[field.name].value)
            except Refused as refused:
                raise _refusal(given[field.name], path, f"must be {refused}") from refused
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
        found = found or Given(value, "default")
        raise _refusal(found, prefix + error.field, error.message) from error


def _refusal(given: Given, path: str, message: str) -> UserError:
    return UserError(f"{given.source}: {path} = {show(given.value)}: {message}")
