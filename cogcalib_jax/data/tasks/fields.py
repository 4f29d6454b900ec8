"""Reading and writing the fields of a row, and the one form of a task's answers.

A field that cannot be used raises BadRow with the reason. Answers are texts, letters, booleans or
indices, in one form for all rows.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from cogcalib_jax.data.example import BadRow, Example, NoLabel, as_read, fold_case
from cogcalib_jax.errors import UserError

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
    raise BadRow(f"holds a value of type {type(value).__name__}, which JSON cannot hold")


Way = Literal["text", "letter", "boolean", "index"]
"""values of `--data.answers`"""
_Reading = Literal["text", "letter", "boolean", "index from 0", "index from 1"]
_YES_NO = {True: ("yes", "true"), False: ("no", "false")}
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d*)?", re.ASCII)
_BRACKETS = "().: "


class Asked(NamedTuple):
    """The answer of a row and the choices it may refer to."""

    where: str
    value: Any
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def position(self, reading: _Reading) -> int | None:
        """Return the index of the choice that the answer names in this reading, or None."""
        return _position(reading, self.value, self.texts, self.labels)


class Settled(NamedTuple):
    """The one reading of a task's answers."""

    reading: _Reading
    note: str = ""
    """a doubt that the rows leave"""
    fitted: bool = True
    """False if no row has an answer that can be read, and the user names no form"""

    def position(self, value: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
        """Return the index of the right choice, or None if `value` names none."""
        return _position(self.reading, value, texts, labels)

    def expected(self, labels: Sequence[str]) -> str:
        """Return the answers that a row with these labels may have, for an error."""
        if not self.fitted:
            return (
                'the text of a choice, its letter ("A"), or its index from 0 to'
                f" {len(labels) - 1} as a number"
            )
        return {
            "text": "the text of a choice",
            "letter": f"one of {', '.join(label for label in labels if label)}",
            "boolean": "true or false (or 1 or 0), beside choices yes and no (or true and false)",
            "index from 0": f"an index from 0 to {len(labels) - 1}",
            "index from 1": f"an index from 1 to {len(labels)}",
        }[self.reading]


def settle_answers(
    rows: Sequence[Asked], way: Way | None = None, start: int | None = None
) -> Settled:
    """Find the one reading that fits every row; a row that no reading fits is not counted.

    Args:
        rows: all labelled rows of the task, from all its files.
        way: the form that the user names; None: not known.
        start: the index of the first choice that the user names, 0 or 1; None: not known.

    Raises:
        UserError: no reading fits every row, several fit and differ, or indices count from 1 and
            the user did not name that start.
    """
    numbers = [(row, number) for row in rows if (number := _whole(row.value)) is not None]
    zero = next((row for row, number in numbers if number == 0), None)
    full = [row for row, number in numbers if number == len(row.texts)]
    candidates = _candidates(way, start, zero is not None)
    if start == 1 and zero is not None and not full:
        raise UserError(
            f"{zero.where}: answer is {zero.value!r} with data.answers_from 1; expected indices"
            " from 1. The rows count from 0: leave --data.answers-from out"
        )
    # Rows that fit only an index from 1 are bad rows, unless the indices show that start.
    others = [name for name in candidates if name != "index from 1"] or candidates
    fits = _fits(rows, others)
    from_one = "index from 1" in candidates and others != candidates
    if from_one and full and (not fits or "index from 0" in fits):
        raise UserError(
            f"{full[0].where}: answers count from 1: none is 0, and"
            f" {len(full)} are the number of choices; expected indices from 0. Read them with"
            " --data.answers-from 1"
        )
    if not fits:
        return Settled(candidates[0], fitted=way is not None or start is not None)
    note = ""
    if way is None and {"boolean", "index from 0"} <= set(fits):  # 0 and 1 beside yes and no
        fits.remove("boolean")
        note = _turned_note(rows)
    read = [row for row in rows if row.position(fits[0]) is not None]
    if from_one and all(row.position("index from 1") is not None for row in read):
        # Indices of which none is 0 and none too large count from 0.
        fits += [] if "index from 0" in fits else ["index from 1"]
    _require_same_answers(rows, fits)
    if not note and fits[0] == "index from 0" and zero is None and numbers and start is None:
        note = (
            "no answer is 0, so the first choice is never right; if the indices count from 1, give"
            " --data.answers-from 1"
        )
    return Settled(fits[0], note)


def _turned_note(rows: Sequence[Asked]) -> str:
    """Return a doubt about indices 0 and 1 that would name other choices if 1 meant yes."""
    for row in rows:
        place = row.position("index from 0")
        if place is not None and place != row.position("boolean"):
            return (
                f"answer {row.value!r:.60} is read as the index of {row.texts[place]!r:.40}; if 1"
                " means yes or true, give --data.answers boolean"
            )
    return ""


def could_be_answers(rows: Sequence[Asked]) -> bool:
    """Return whether one of the readings fits more than half of the rows."""
    readings: tuple[_Reading, ...] = get_args(_Reading)
    counts = [sum(row.position(reading) is not None for row in rows) for reading in readings]
    return 2 * max(counts) > len(rows)


def _candidates(way: Way | None, start: int | None, zero: bool) -> list[_Reading]:
    if start is not None:
        return ["index from 1" if start else "index from 0"]
    if way is not None and way != "index":
        return [way]
    # Indices among which there is a 0 do not count from 1.
    indices: list[_Reading] = ["index from 0"] if zero else ["index from 0", "index from 1"]
    return indices if way == "index" else ["text", "letter", "boolean", *indices]


def _fits(rows: Sequence[Asked], candidates: Sequence[_Reading]) -> list[_Reading]:
    """Return the readings that fit every row that any reading fits (UserError: none fits them all);
    [] if none fits a row."""
    fitting = [[name for name in candidates if row.position(name) is not None] for row in rows]
    usable = [(row, names) for row, names in zip(rows, fitting, strict=True) if names]
    counts = Counter(name for names in fitting for name in names)
    fits = [name for name in candidates if counts[name] == len(usable)]
    if fits or not usable:
        return fits if usable else []
    ((common, _),) = counts.most_common(1)
    shown = next(row for row, names in usable if common in names)
    odd, (other, *_) = next((row, names) for row, names in usable if common not in names)
    raise UserError(
        f"{odd.where}: answer {odd.value!r:.60} is read as {_words(other)}, and"
        f" {shown.value!r:.60} ({shown.where}) as {_words(common)}; expected one way for all rows."
        " Write them in one way, or choose it with --data.answers text, letter or index"
    )


def _require_same_answers(rows: Sequence[Asked], fits: Sequence[_Reading]) -> None:
    """Refuse two readings that fit every row and name different choices in one."""
    for row in rows if len(fits) > 1 else ():
        found = {name: place for name in fits if (place := row.position(name)) is not None}
        if len(set(found.values())) > 1:
            first = fits[0]
            other = next(name for name in fits[1:] if found[name] != found[first])
            raise UserError(
                f"{row.where}: answer {row.value!r:.60} may be {_words(first)}"
                f" ({row.texts[found[first]]!r:.40}) or {_words(other)}"
                f" ({row.texts[found[other]]!r:.40}), and both fit every row. Choose with"
                f" {_option(first)} or {_option(other)}"
            )


def _position(
    reading: _Reading, value: Any, texts: Sequence[str], labels: Sequence[str]
) -> int | None:
    if reading == "boolean":
        return _boolean(value, texts)
    if isinstance(value, bool):
        return None
    if reading == "text":
        return _text(value, texts)
    if reading == "letter":
        return next((i for form in _forms(value) if (i := _label(form, labels)) is not None), None)
    number = _whole(value)
    place = None if number is None else number - (reading == "index from 1")
    return place if place is not None and 0 <= place < len(texts) else None


def _boolean(value: Any, texts: Sequence[str]) -> int | None:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().casefold(), value)
    if _whole(value) in (0, 1):
        value = bool(_whole(value))
    if not isinstance(value, bool):
        return None
    found = [i for i, text in enumerate(texts) if fold_case(text) in _YES_NO[value]]
    return found[0] if len(found) == 1 else None


def _text(value: Any, texts: Sequence[str]) -> int | None:
    """Return the choice with this text; if there is none, the only one that differs in case, or in
    how it writes the same number: a table may hold 2 in one column and 2.0 in another."""
    form, number = next(iter(_forms(value)), ""), _number(value)
    found = matching_choices(form, texts)
    if not found and number is not None:
        found = [i for i, text in enumerate(texts) if _number(text) == number]
        return found[0] if len(found) == 1 else None
    # A choice that occurs twice as written is refused later.
    if len(found) == 1 or (found and as_read(texts[found[0]]) == as_read(form)):
        return found[0]
    return None


def _label(value: str, labels: Sequence[str]) -> int | None:
    wanted = value.strip()
    bare = wanted.strip(_BRACKETS)
    for same in (str, str.casefold):
        for form in (wanted, bare):
            found = [i for i, label in enumerate(labels) if label and same(label) == same(form)]
            if len(found) == 1:
                return found[0]
    return None


def _forms(value: Any) -> list[str]:
    """Return the texts that may be meant by a value: 3.0 is also "3"."""
    if isinstance(value, str):
        forms = [value]
    elif isinstance(value, int | float):
        forms = [repr(value)]
    else:
        return []
    number = _whole(value)
    return forms if number is None else [*forms, str(number)]


def _whole(value: Any) -> int | None:
    """Return a whole number, also one that is written as a text, or None."""
    number = _number(value)
    return None if number is None or number % 1 else int(number)


def _number(value: Any) -> Decimal | None:
    """Return a number, also one that is written as a text, or None."""
    if isinstance(value, str):
        value = value.strip()
        return Decimal(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Decimal(repr(value)) if abs(value) < 10**18 else None


def _words(reading: _Reading) -> str:
    return {
        "text": "the text of a choice",
        "letter": "the letter or label of a choice",
        "boolean": "true or false",
    }.get(reading, f"an {reading}")


def _option(reading: _Reading) -> str:
    if reading == "index from 1":
        return "--data.answers-from 1"
    return f"--data.answers {'index' if reading == 'index from 0' else reading}"
