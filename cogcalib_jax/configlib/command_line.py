"""The command line: `--section.field value`, `--section.field=value`, bare `--flag` for a bool, and
for a list its items with commas or spaces between."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_origin

from cogcalib_jax.configlib.fields import leaves, unknown_key
from cogcalib_jax.configlib.renamed import renamed
from cogcalib_jax.configlib.values import Refused, allowed, require_text, show
from cogcalib_jax.errors import UserError

SOURCE = "command line"


@dataclass(frozen=True)
class Arguments:
    """The command line taken apart."""

    words: dict[str, str]
    """Dotted path -> its word; where an option is given twice, the last one counts."""
    preset: str | None
    """The file given with --config."""
    wants_help: bool
    wants_everything: bool = False
    """Whether the help is to show every field."""
    old_names: dict[str, str] = field(default_factory=dict)
    """Dotted path -> its old name, for words that were given under that."""


def split_arguments(cls: type, argv: Sequence[str]) -> Arguments:
    """Take the arguments for the config `cls` apart (UserError where one is no option of it)."""
    kinds = dict(leaves(cls))
    words: dict[str, str] = {}
    old_names: dict[str, str] = {}
    preset, wants_help, wants_everything = None, False, False
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument in ("--help", "-h", "--help-all"):
            wants_help, wants_everything = True, argument == "--help-all"
            continue
        if not argument.startswith("--"):
            raise UserError(
                f"{SOURCE}: unexpected argument {show(argument)}; "
                "options are written --section.field value (--help lists them)"
            )
        option, assigned, word = argument.partition("=")
        path = given = option[2:].replace("-", "_")
        new = renamed(path)
        new = new if path not in kinds and new and new.path in kinds else None
        path = new.path if new else path
        inside = [f"--{leaf}" for leaf in kinds if leaf.startswith(f"{path}.")]
        if inside:
            raise UserError(
                f"{SOURCE}: {path} is a section; give one of its fields: {', '.join(inside)}"
            )
        if path == "set" and path not in kinds:
            given = word or " ".join(rest[:1])
            name, _, value = given.partition("=")
            raise UserError(
                f"{SOURCE}: unknown key set; options are written --section.field value"
                + (f": --{name} {value}" if value else " (--help lists them)")
            )
        if path != "config" and path not in kinds:
            raise unknown_key(cls, path, SOURCE)
        if not assigned and rest and not rest[0].startswith("--"):
            word = rest.pop(0)
            while get_origin(kinds.get(path)) is tuple and rest and not rest[0].startswith("--"):
                word += f",{rest.pop(0)}"
        elif not assigned and kinds.get(path) is bool:
            word = "true"
        elif not assigned or (path == "config" and not word):
            wanted = "a preset file" if path == "config" else allowed(kinds[path])
            raise UserError(f"{SOURCE}: {option} needs a value: {wanted}")
        if path == "config":
            try:
                require_text(word)  # a run's folder may be called after it
            except Refused as refused:
                raise UserError(f"{SOURCE}: config = {show(word)}: must be {refused}") from refused
            preset = word
            continue
        word = new.value(word) if new else word
        before = old_names.get(path, path)
        if path in words and before != given and words[path] != word:
            raise UserError(
                f"{SOURCE}: --{before} {show(words[path])} and --{given} {show(word)} are the same"
                f" field and contradict each other; keep --{path.replace('_', '-')}"
            )
        words[path] = word
        if new:
            old_names[path] = given
    return Arguments(words, preset, wants_help, wants_everything, old_names)
