"""The command line: `--section.field value`, `--section.field=value`, bare `--flag` for a bool, and
for a list its items with commas or spaces between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_origin

from cogcalib_jax.configlib.fields import leaves, unknown_key
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


def split_arguments(cls: type, argv: Sequence[str]) -> Arguments:
    """Take the arguments for the config `cls` apart (UserError where one is no option of it)."""
    kinds = dict(leaves(cls))
    words: dict[str, str] = {}
    preset, wants_help = None, False
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument in ("--help", "-h"):
            wants_help = True
            continue
        if not argument.startswith("--"):
            raise UserError(
                f"{SOURCE}: unexpected argument {show(argument)}; "
                "options are written --section.field value (--help lists them)"
            )
        option, assigned, word = argument.partition("=")
        path = option[2:].replace("-", "_")
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
        else:
            words[path] = word
    return Arguments(words, preset, wants_help)
