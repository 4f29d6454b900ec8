"""YAML in and out.

A strict part of YAML: one document of mappings, lists and scalars, keys that are names of fields,
each given once; no tags, no aliases. Scalars get no implicit type here.
"""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from cogcalib_jax.configlib.fields import fields, leaves, unknown_key
from cogcalib_jax.configlib.renamed import get, put, renamed, was_section
from cogcalib_jax.configlib.values import is_word, plain, show
from cogcalib_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Given:
    """A value as it was written, and where."""

    value: Any
    """Text, str (quoted), None, or a list or dict of these."""
    source: str
    """`FILE:LINE` or "command line"."""
    old_name: str | None = None
    """The old dotted path under which it was written, if that has another name today."""


Tree = dict[str, Any]  # field name -> Given, or a Tree for a section


def read_file(path: str) -> str:
    """A preset's text (UserError where it cannot be read)."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        file = Path(path)
        names = [other.name for other in file.parent.glob("*.yaml") if other != file]
        near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.75)
        hint = f"did you mean {file.with_name(near[0])}? Else " if near else ""
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); {hint}choose a preset with --config FILE"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from error


def read_tree(cls: type, text: str, source: str) -> Tree:
    """What the YAML `text` gives for the fields of `cls`, not yet converted.

    Raises:
        UserError: not such YAML, an unknown key, or a key given twice, with file and line.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        # "but found ..." goes on with what was expected, which the context says.
        goes_on = error.context and error.problem.startswith("but ")
        problem = f"{error.context}, {error.problem}" if goes_on else error.problem
        raise UserError(f"{source}{line}: not a valid preset: {problem}; mend it") from error
    except yaml.reader.ReaderError as error:
        place = f"character {error.position + 1}"
        raise UserError(f"{source}: not a valid preset: {error.reason} ({place}); mend it") from (
            error
        )
    except RecursionError as error:
        raise UserError(
            f"{source}: not a valid preset: nested too deeply; no field needs it"
        ) from (error)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{source}: must be a mapping of fields (field: value), one to a line")

    leaf_paths = {path for path, _ in leaves(cls)}
    old: dict[str, Given] = {}

    def read(section: type | None, node: yaml.MappingNode, prefix: str) -> Tree:
        known = {field.name: field for field in fields(section)} if section else {}
        tree: Tree = {}
        for key, value_node in node.value:
            where = f"{source}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{where}: a key must be the name of a field")
            name, value = key.value.replace("-", "_"), _value(value_node)
            path = prefix + name
            if name not in known and (new := renamed(path)) and new.path in leaf_paths:
                old[new.path] = Given(new.value(value), where, path)
                continue
            if name not in known and was_section(path) and isinstance(value_node, yaml.MappingNode):
                read(None, value_node, f"{path}.")
                continue
            if name not in known:
                raise unknown_key(cls, path, where)
            if name in tree:
                raise UserError(f"{where}: {path} is given twice; keep one of them")
            if not known[name].is_section:
                tree[name] = Given(value, where)
            elif isinstance(value_node, yaml.MappingNode):
                tree[name] = read(known[name].kind, value_node, f"{path}.")
            elif value is None:  # a section whose lines are all commented out
                tree[name] = {}
            else:
                inside = ", ".join(field.name for field in fields(known[name].kind))
                raise UserError(
                    f"{where}: {path} = {show(value)}: is a section; "
                    f"write its fields below it ({inside})"
                )
        return tree

    tree = read(cls, root, "")
    for path, given in old.items():
        require_no_contradiction(path, given, get(tree, path))
        put(tree, path, given)
    return tree


def require_no_contradiction(path: str, old: Given, new: Given | None) -> None:
    """Refuse another value under a field's old name than under its name of today (UserError)."""
    if new is not None and new.value != old.value:
        raise UserError(
            f"{old.source}: {old.old_name} is the old name of {path}, and they contradict each"
            f" other ({show(old.value)}, {show(new.value)}); keep {path}"
        )


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts of what YAML and JSON can hold (tuples as lists, paths as str)."""

    def simple(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        if isinstance(value, tuple):
            return [simple(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {field.name: simple(getattr(config, field.name)) for field in fields(type(config))}


def to_yaml(config: Any) -> str:
    """The config as YAML that `from_yaml` reads back as an equal config."""
    return yaml.dump(
        to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )


class _Loader(yaml.BaseLoader):
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            _refuse("aliases (*name)", self.peek_event())
        node = super().compose_node(parent, index)
        # `!!str`, `!!map` and `!!seq` ask for nothing else and pass.
        if node.tag != self.resolve(type(node), "", (True, False)):
            _refuse(f"tags ({node.tag})", node)
        return node


def _refuse(what: str, where: yaml.Node | yaml.Event) -> None:
    raise yaml.MarkedYAMLError(problem=f"{what} are not supported", problem_mark=where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Lists on one line; text quoted where a reader could take it for something else."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if is_word(text) else '"'
    ),
)
_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def _value(node: yaml.Node) -> Any:
    match node:
        case yaml.ScalarNode(style=None, value=""):
            return None
        case yaml.ScalarNode(style=None, value=text):
            return plain(text)
        case yaml.SequenceNode(value=items):
            return [_value(item) for item in items]
        case yaml.MappingNode(value=pairs):
            return {show(_value(key)): _value(value) for key, value in pairs}
    return node.value
