"""`--help`: fields with their type, their default after the preset, and their doc line.

It shows the fields that people change often, if any are marked; `--help-all` shows every field.

tyro lays the text out (sections, columns, the terminal's width). It is shown a mirror of the
config in which every field is text: of the config itself it would advertise its own syntax
(`--compare [STR [STR ...]]`, `--no-resume`), which is not the one that is read here.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from cogcalib_jax.configlib.fields import field_docs, fields
from cogcalib_jax.configlib.presets import Tree
from cogcalib_jax.configlib.values import metavar, show


def print_help(
    cls: type,
    given: Tree,
    *,
    prog: str,
    description: str,
    preset: str | Path | None,
    everything: bool,
) -> None:
    """Print the help for the config `cls`; `given` is what the preset says.

    everything: also the fields that are not marked as `often`.
    """
    everything = everything or not any(field.often for field in fields(cls))
    if not everything:
        description += "\n\nThese settings are changed most often; --help-all shows every one."
    option = _option("FILE", "Preset (YAML); the other options are laid over it.", preset)
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
