"""Text and the types of fields: conversion, what is allowed, how a value is shown and written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from cogcalib_jax.registry import split_outside
from cogcalib_jax.settings import to_dict


class Text(str):
    """A plain YAML scalar or a word of the command line; a quoted YAML string is a str."""


class Refused(Exception):
    """A value that is not of the field's type; the message names what is allowed."""


_NAMES = {  # type -> (as an error says it, as the help says it)
    str: ("text", "TEXT"),
    int: ("a whole number", "INT"),
    float: ("a number", "FLOAT"),
    bool: ("true or false", "[true|false]"),
    Path: ("a path", "PATH"),
    NoneType: ("none", "none"),
}


def plain(text: str) -> Text | None:
    """Return a word that stands unquoted in a preset or on the command line; None for null."""
    return None if text.lower() in ("null", "~") else Text(text)


def convert(kind: Any, value: Any) -> Any:
    """Return `value` as the field type `kind`.

    Args:
        kind: bool, int, float, str, Path, Literal, tuple, or a union of these with None.
        value: as it was written: Text, str (quoted), None, or a list or dict of these.

    Raises:
        Refused: the message follows "must be".
    """
    origin = get_origin(kind)
    if isinstance(value, str):
        require_text(value)
    if origin in (Union, UnionType):
        for member in _members(kind):
            try:
                return convert(member, value)
            except Refused:
                continue
    elif origin is Literal:
        for choice in get_args(kind):
            if value == choice or (isinstance(value, Text) and value == _choice(choice)):
                return choice
    elif origin is tuple:
        return _convert_items(kind, value)
    elif kind is str and isinstance(value, str):
        return str(value)
    elif kind is Path and isinstance(value, str) and value:
        return Path(value)
    elif kind is NoneType and value is None:
        return None
    elif isinstance(value, Text):
        if kind is NoneType and value.lower() == "none":
            return None
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind is int and _INTEGER.fullmatch(value):
            return int(value)
        if kind is float and (number := _number(value)) is not None:
            return number
    raise Refused(allowed(kind))


def require_text(value: str) -> None:
    """Raise Refused for what no file name or no text file can hold.

    Bytes of the command line that are not UTF-8 arrive as lone surrogates, and a quoted YAML string
    may hold one. Both would fail only after the work, when they are written.
    """
    if "\0" in value:
        raise Refused("without the character NUL, which no file name holds")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Refused("text in UTF-8, without bytes of another encoding or half a character")


def allowed(kind: Any) -> str:
    """Return what a field of this type accepts, as errors say it after "must be"."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return ", or ".join(map(allowed, _members(kind, none_last=True)))
    if origin is Literal:
        return f"one of {', '.join(map(_choice, get_args(kind)))}"
    if origin is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return f"a list with commas between, each {allowed(kinds[0])}"
        return f"{len(kinds)} values with commas between: {', '.join(map(allowed, kinds))}"
    return _NAMES[kind][0]


def metavar(kind: Any) -> str:
    """Return what a field of this type accepts as one short word, for the help."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return "|".join(map(metavar, _members(kind, none_last=True)))
    if origin is Literal:
        return "{" + ",".join(map(_choice, get_args(kind))) + "}"
    if origin is tuple:
        return ",".join("..." if item is Ellipsis else metavar(item) for item in get_args(kind))
    return _NAMES[kind][1]


def show(value: Any) -> str:
    """Return a value on one line, in the notation of the command line; ambiguous text is quoted."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        clear = is_word(value) or (isinstance(value, Text) and value and value.isprintable())
        text = value if clear else json.dumps(value, ensure_ascii=not value.isprintable())
        return text if len(text) <= 80 else f"{text[:77]}..."
    if isinstance(value, list | tuple):
        return ",".join(map(show, value)) or "[]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    return "none" if value is None else str(value)


def is_word(text: str) -> bool:
    """Return whether every YAML reader and every field type reads this as text."""
    # none unsets an optional field; yes, no, on ... are booleans of YAML 1.1.
    taken = ("none", "null", "true", "false", "yes", "no", "on", "off", "y", "n")
    word = re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII)
    return bool(word) and text.lower() not in taken and _number(text) is None


def to_yaml(config: Any) -> str:
    """Return the config as YAML that `from_yaml` reads back as an equal config."""
    return yaml.dump(
        to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )


class _Dumper(yaml.SafeDumper):
    """A dumper that writes lists on one line and quotes ambiguous text."""


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


# Nineteen digits hold every 64-bit number; int() itself raises from some thousand digits on.
_INTEGER = re.compile(r"[-+]?[0-9]([0-9_]{0,17}[0-9])?")


def _number(text: str) -> float | None:
    """Return the number in a text; None for not-a-number, which would slip through checks."""
    try:
        number = float(re.sub(r"^([-+]?)\.inf$", r"\1inf", text, flags=re.IGNORECASE))
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _choice(choice: Any) -> str:
    """Return a member of a Literal as a user writes it; "none" is text here, without quotes."""
    return show(Text(choice) if isinstance(choice, str) else choice)


def _members(union: Any, none_last: bool = False) -> list[Any]:
    """Return a union's members in the order of trial: a literal "none", the absent value, text."""
    rank = {Literal: 0, NoneType: 3 if none_last else 1}
    return sorted(get_args(union), key=lambda kind: rank.get(get_origin(kind) or kind, 2))


def _convert_items(kind: Any, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        inside = value.strip()
        if inside.startswith("[") and inside.endswith("]"):
            inside = inside[1:-1].strip()
        words = [word.strip() for word in split_outside(inside, ",")] if inside else []
        value = [plain(word) if word else None for word in words]
    kinds = get_args(kind)
    if isinstance(value, list) and kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if not isinstance(value, list) or len(kinds) != len(value):
        raise Refused(allowed(kind))
    converted = []
    for place, (item_kind, item) in enumerate(zip(kinds, value, strict=True), 1):
        try:
            converted.append(convert(item_kind, item))
        except Refused as refused:
            raise Refused(f"{allowed(kind)} (item {place} is {show(item)})") from refused
    return tuple(converted)
