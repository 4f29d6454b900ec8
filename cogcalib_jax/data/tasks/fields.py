"""Reading and writing the fields of a row, with a reason for those that cannot be used."""

import base64
import difflib
import hashlib
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from cogcalib_jax.data.example import BadRow, Example, NoLabel, as_read, fold_case

# "" and -1 are the answers in the unlabelled test splits of the Hub.
_UNLABELLED = (None, "", -1, "-1")
# White space aside, control characters are left of a damaged file or meant for a terminal: U+009B
# is ESC [ in one. Its neighbours occur as quotation marks in texts that were decoded wrongly, and
# others turn the direction of Arabic and Hebrew; they are escaped on display.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\x9b]")
# Readers of JSON in other languages hold numbers as float64, which is exact up to here.
_EXACT = 2**53


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a text field that is not empty, without outer white space."""
    if name not in row:
        raise BadRow(f"has no field {name!r} (its fields are: {', '.join(map(str, row))})")
    return clean(row[name], name)


def clean(value: Any, name: str) -> str:
    """Return `value` as a text that a tokenizer can take (BadRow if it is none)."""
    if not isinstance(value, str):
        raise BadRow(f"{name!r} must be a text, is {value!r:.60}")
    if not value.strip():
        raise BadRow(f"{name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name!r} holds half a character (a lone surrogate)") from None
    if control := _CONTROL.search(value):
        raise BadRow(f"{name!r} holds the control character U+{ord(control[0]):04X}")
    return value.strip()


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Return a list of texts (BadRow if `value` is none)."""
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name!r} must be a list of texts, is {value!r:.60}")
    return tuple(clean(item, f"{name}[{i}]") for i, item in enumerate(value))


def labelled(row: Mapping[str, Any], name: str) -> Any:
    """Return the answer field (NoLabel if it is absent or empty)."""
    answer = row.get(name)
    # True == 1 and False == 0, so membership alone would also compare booleans with -1.
    if not isinstance(answer, bool) and answer in _UNLABELLED:
        raise NoLabel(f"has no answer ({name} is {answer!r})")
    return answer


def accepted(answers: Iterable[str]) -> tuple[str, ...]:
    """Return the accepted answers of an open question, each once; white space is one space.

    Answers that differ in case alone are one, as every score of open answers folds case. Unicode
    is not normalised, because the scores do not normalise it either.

    Raises:
        NoLabel: there are none.
    """
    kept: dict[str, str] = {}
    for answer in answers:
        answer = " ".join(answer.split())
        if answer:
            kept.setdefault(answer.lower(), answer)
    if not kept:
        raise NoLabel("has no accepted answer")
    return tuple(kept.values())


def position(label: Any, labels: Sequence[str], name: str) -> int:
    """Return the index of `label`, a text or a whole number, among `labels`."""
    key = str(label).strip() if isinstance(label, str | int) else label
    if isinstance(label, bool) or key not in labels:
        raise BadRow(f"{name} {label!r:.60} is not one of the labels {', '.join(labels)}")
    return labels.index(key)


def content_id(number: int, *parts: str) -> str:
    """Return an id for a row without one: its number in the file and a hash of its content."""
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8")).hexdigest()
    return f"{number:05d}-{digest[:8]}"


def near_misses(name: str, names: Iterable[str]) -> list[str]:
    """Return up to five of `names` that are like `name`, the likeliest first."""
    names = list(names)
    key = re.sub(r"[\s-]+", "_", name.strip().lower())
    near = difflib.get_close_matches(key, names, n=5)
    near += [other for other in names if key and key in other and other not in near]
    return near[:5]


def matching_choices(answer: str, choices: Sequence[str]) -> list[int]:
    """Return the indices of the choices that `answer` writes out, ascending.

    Case is folded only if no choice is the same text to a reader.
    """
    for same in (as_read, fold_case):
        if found := [i for i, choice in enumerate(choices) if same(choice) == same(answer)]:
            return found
    return []


def check(example: Example, right_choice_may_repeat: bool = False) -> Example:
    """Return `example` itself.

    Two equal *wrong* choices pass: official OpenBookQA rows have them (train 10-317). In published
    files the right choice may repeat, too; they are scored by their key.

    Raises:
        BadRow: fewer than two choices, an answer outside them, a right choice that stands twice,
            or an open question whose only choice is not its reference.
    """
    if example.is_open:
        if example.choices != example.aliases[:1] or example.answer != 0:
            raise BadRow("the only choice of an open question must be its first accepted answer")
        return example
    if len(example.choices) < 2:
        raise BadRow(f"has {len(example.choices)} choices; at least 2 are needed")
    if not 0 <= example.answer < len(example.choices):
        raise BadRow(f"answer {example.answer} is not from 0 to {len(example.choices) - 1}")
    if right_choice_repeats(example) and not right_choice_may_repeat:
        raise BadRow(f"the right choice {example.choices[example.answer]!r:.60} occurs twice")
    return example


def right_choice_repeats(example: Example) -> bool:
    """Return whether the right choice stands twice, as a reader sees it."""
    choices = [as_read(choice) for choice in example.choices]
    return choices.count(choices[example.answer]) > 1


def as_json(value: Any) -> Any:
    """Return `value` as nested dicts, lists, texts, finite numbers, booleans and None.

    Dates, times and durations become ISO 8601 text, decimals and integers beyond 2**53 become text
    with all their digits, bytes become base64, NaN and infinities become None.

    Raises:
        BadRow: the value has a type that JSON has no form for.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Half a character cannot be written as UTF-8; its escape can.
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int):
        return int(value) if abs(value) <= _EXACT else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {as_json(str(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "isoformat"):  # dates and times, also those of pandas
        return value.isoformat()
    if isinstance(value, timedelta):
        seconds = Decimal(value // timedelta(microseconds=1)).scaleb(-6)
        return f"PT{seconds.normalize():f}S"
    if isinstance(value, uuid.UUID):
        return str(value)
    raise BadRow(f"holds a value of type {type(value).__name__}, for which JSON has no form")
