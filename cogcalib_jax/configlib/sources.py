"""The sources of values: a preset in YAML, and the command line.

A plain scalar of a preset and a word of the command line are the same here: text whose meaning
follows from the type of the field (`1e-4` is a number only if the field is one). Presets use a
strict part of YAML: mappings, lists and scalars; every key is the name of a field, given once.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml

import cogcalib_jax
from cogcalib_jax.configlib.values import Refused, allowed, plain, require_text, show
from cogcalib_jax.errors import UserError
from cogcalib_jax.settings import (
    TAKEN,
    fields,
    get,
    leaves,
    put,
    renamed,
    renamed_from,
    was_section,
)

SOURCE = "command line"
DEFAULT_PRESET = "world"


@dataclass(frozen=True)
class Given:
    """A value as it was written, and its source."""

    value: Any
    """Text, str (quoted), None, or a list or dict of these"""
    source: str
    """`FILE:LINE` or "command line"."""
    old_name: str | None = None
    """the old dotted path under which it was written, if it has a new name today"""


Tree = dict[str, Any]
"""field name -> Given, or a Tree for a section"""


def preset_folder() -> Path:
    """Return the folder of the presets: in an installed package, or in a checkout beside it."""
    package = Path(cogcalib_jax.__file__).parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "configs"


def preset_names(below: str = "") -> list[str]:
    """Return the names of the presets `below` a folder, such as "world", "suites/world_quick"."""
    folder = preset_folder() / below
    found = folder.rglob("*.yaml")
    return sorted(str(file.relative_to(folder).with_suffix("").as_posix()) for file in found)


def find_preset(
    word: str, below: str = "", *, what: str = "config", others: Sequence[str] = ()
) -> str:
    """Return the file that `word` names: a file as it stands, or a preset by its name.

    Args:
        below: the folder of the presets that are meant.
        what: they are called so in the error.
        others: words that the error may suggest, too.

    Raises:
        UserError: neither.
    """
    if Path(word).is_file():
        return word
    name, names = word.removeprefix(below).removesuffix(".yaml"), preset_names(below)
    if name in names:
        return str(preset_folder() / below / f"{name}.yaml")
    if Path(word).suffix or "/" in word:
        return word  # meant as a file: whoever reads it says why it cannot
    near = difflib.get_close_matches(name, [*names, *others], n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected a file or one of {', '.join(names)}"
    raise UserError(f"{SOURCE}: {what} is {word!r}; {hint}")


def read_file(path: str) -> str:
    """Return the text of a preset (UserError if it cannot be read)."""
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
    """Return what YAML text gives for the fields of `cls`, not converted yet.

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
        raise UserError(f"{source}{line}: not a valid preset: {problem}; correct it") from error
    except yaml.reader.ReaderError as error:
        place = f"character {error.position + 1}"
        raise UserError(
            f"{source}: not a valid preset: {error.reason} ({place}); correct it"
        ) from (error)
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
            if name not in known and path in TAKEN:
                _require_same(path, value, where)
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
        _require_no_contradiction(path, given, get(tree, path))
        put(tree, path, given)
    return tree


def _require_same(path: str, value: Any, where: str) -> None:
    """Refuse a value of a removed field, unless it is the one that every run has now."""
    now = show(TAKEN[path])
    if show(value) != now:
        raise UserError(f"{where}: {path} = {show(value)}: is always {now} now; delete the line")


def _require_no_contradiction(path: str, old: Given, new: Given | None) -> None:
    """Refuse different values under the old and the new name of a field."""
    if new is not None and new.value != old.value:
        raise UserError(
            f"{old.source}: {old.old_name} is the old name of {path}, and they contradict each"
            f" other ({show(old.value)}, {show(new.value)}); keep {path}"
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


def unknown_key(cls: type, path: str, source: str) -> UserError:
    """Return the error for a path that is no field of `cls`, with the field probably meant."""
    known = [leaf for leaf, _ in leaves(cls)]
    sections = {leaf.rpartition(".")[0] for leaf in known} - {""}
    near = difflib.get_close_matches(path, [*known, *sorted(sections)], n=1, cutoff=0.75)
    # A field under the wrong section, or under none: `epochs` for `training.epochs`.
    name = path.rpartition(".")[2]
    near = near or [leaf for leaf in known if leaf.rpartition(".")[2] == name]
    near = near or [leaf for leaf in renamed_from(name) if leaf in known]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    if path in near:
        return UserError(f"{source}: {path} must be written as nested sections, a field to a line")
    hint = f"did you mean {near[0]}?" if near else "--help lists every field"
    return UserError(f"{source}: unknown key {show(path)}; {hint}")


@dataclass(frozen=True)
class Arguments:
    """The command line, split into options."""

    words: dict[str, str]
    """dotted path -> its word; of an option that is given twice the last word"""
    preset: str | None
    """the file that --config names"""
    wants_help: bool
    wants_everything: bool = False
    """whether the help shows every field"""
    old_names: dict[str, str] = field(default_factory=dict)
    """dotted path -> its old name, for words that were given under it"""


def split_arguments(cls: type, argv: Sequence[str]) -> Arguments:
    """Return the arguments for the config `cls` as dotted paths and words.

    Accepted are `--section.field value`, `--section.field=value`, `--flag` alone for a bool, and
    the items of a list with commas or spaces between.

    Raises:
        UserError: an argument that is no option of `cls`, or lacks its value; no such preset.
    """
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
            preset = find_preset(word)
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
