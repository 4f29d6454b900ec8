"""The reader of the user's own questions, settled over all files of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogcalib_jax.console import warn
from cogcalib_jax.data.example import BadRow, Example, NoLabel, as_read
from cogcalib_jax.data.formats import Row
from cogcalib_jax.data.tasks.columns import (
    NAMES,
    OPEN,
    OTHERS,
    Choices,
    Columns,
    Found,
    find,
    in_order,
    is_absent,
    is_empty,
    parsed,
    two_columns,
)
from cogcalib_jax.data.tasks.fields import (
    Asked,
    Settled,
    Way,
    accepted,
    as_json,
    clean,
    content_id,
    could_be_answers,
    labelled,
    settle_answers,
    texts,
)
from cogcalib_jax.errors import UserError, first_of

_LETTER = re.compile(r"\(?[A-Ja-j][).:]?\)?")


@dataclass(frozen=True)
class Reader:
    """The reader of a task's rows, which is called for each of them."""

    asked: Columns
    """field -> columns, as the user names them"""
    answers: tuple[str, ...]
    """columns of the answer, of which the first in a row counts; () if answers are not read"""
    settled: Settled
    needs_answer: bool
    read: frozenset[str] = frozenset()
    """columns that are read in some row; empty ones are not kept in `extra`"""
    unread: tuple[str, ...] = ()
    """columns that are not empty and not read"""
    notes: tuple[str, ...] = ()
    """how columns and answers are read, if not in the usual way"""
    listed: bool = False
    """whether the answers of open questions are lists that are written as texts"""

    def __call__(self, content: Mapping[str, Any], number: int, where: str = "") -> Example:
        """Return the question of a row.

        Other columns are kept in `extra` as JSON values; `known` among them is true if the base
        knows the answer.

        Raises:
            BadRow: a row that cannot be used; NoLabel: one without an answer.
            UserError: two columns that could be the same field.
        """
        found = find(content, where, self.asked)
        if found.question is None:
            raise BadRow(_no_question(content, self.asked))
        question = clean(content[found.question], found.question)
        others = found.others
        passage = content[others["passage"]] if "passage" in others else ""
        if passage != "" and not isinstance(passage, str):
            raise BadRow(
                f"{others['passage']!r} must be a text, is {passage!r:.60}; name another column"
                " with --data.columns passage=COLUMN, or none with passage=none"
            )
        passage = passage and clean(passage, others["passage"])
        aliases: tuple[str, ...] = ()
        if found.choices is None:
            if not self.needs_answer:
                raise BadRow("has no choices; give the options to choose from")
            aliases = _accepted(self._labelled(content, found), self.listed)
            choices, answer = aliases[:1], 0
        else:
            choices = found.choices.texts
            if len(set(map(as_read, choices))) != len(choices):
                raise BadRow("two of its choices are equal")
            answer = self._position(self._labelled(content, found), found.choices)
        used = {*_columns(found), *self.answers}
        used |= {name for name in (*self.read, *NAMES) if is_absent(content.get(name))}
        extra = _extra(content, used)
        if is_empty(content, self.asked, "group"):
            extra["group"] = None  # `Example.group` is None for a missing column, too
        if "known" in others:
            extra["known"] = _known(content[others["known"]], others["known"])
        name = _name(content, others.get("id"))
        return Example(
            id=name or content_id(number, passage, question, *choices),
            question=question,
            choices=choices,
            answer=answer,
            passage=passage,
            group=_name(content, others.get("group")),
            extra=extra,
            aliases=aliases,
        )

    def _labelled(self, content: Mapping[str, Any], found: Found) -> Any:
        if not self.needs_answer:
            return None
        column = _first(found.answers, self.answers)
        if column is None:
            raise NoLabel(f"has no answer (its columns are: {', '.join(map(str, content))})")
        return labelled(content, column)

    def _position(self, answer: Any, choices: Choices) -> int:
        if not self.needs_answer:
            return 0
        answer = _value(answer)
        found = self.settled.position(answer, choices.texts, choices.labels)
        if found is None:
            expected = self.settled.expected(choices.labels)
            raise BadRow(f"answer {answer!r:.60} is not a choice; expected {expected}")
        return found


def settle(
    rows: Sequence[Row],
    asked: Columns,
    answers: Way | None = None,
    answers_from: int | None = None,
    needs_answer: bool = True,
) -> Reader:
    """Return the reader of a task's rows.

    Args:
        asked: field -> columns, as the user names them.
        answers: the form of the answers, if the user names it.
        answers_from: the index of the first choice, if the user names it.
        needs_answer: False for questions that are only asked: their answers are not read.

    Raises:
        UserError: ambiguous columns or answers, with the option that decides; a named column that
            no row has.
    """
    _require_columns(rows, asked)
    found = []
    unread: dict[str, None] = {}
    for row in rows:
        if isinstance(row.content, BadRow):
            continue
        try:
            found.append((row, find(row.content, row.where, asked)))
        except BadRow:
            continue  # refused when it is read, or left out
    names: tuple[str, ...] = ()
    settled = Settled("text", fitted=False)
    if needs_answer:
        names = _answer_columns(found)
        settled = settle_answers(_asked(found, names), answers, answers_from)
        if settled.note:
            warn(settled.note)
        _require_no_letters(found, names, asked)
    read = {name for _, columns in found for name in _columns(columns) if name is not None}
    for row, columns in found:
        used = {*_columns(columns), *names}
        unread |= {
            str(k): None for k, v in row.content.items() if k not in used and not is_absent(v)
        }
    notes = _notes([columns for _, columns in found], names, settled)
    # A text in brackets may be an answer itself, unless that of every question is one.
    open_answers = _open_answers(found, names)
    listed = bool(open_answers) and all(_is_listed(value) for value in open_answers)
    notes += ("answers by list",) * listed
    return Reader(
        asked, names, settled, needs_answer, frozenset(read), tuple(unread), notes, listed
    )


def _require_columns(rows: Sequence[Row], asked: Columns) -> None:
    """Refuse a named column of a field that rows may lack, if no row has it."""
    held = {name: None for row in rows if isinstance(row.content, Mapping) for name in row.content}
    for field in OTHERS:
        if held and asked.get(field, OPEN) not in (OPEN, *held):
            raise UserError(
                f"data.columns = {field}={asked[field]}: no row has this column; expected one of"
                f" {first_of([*map(str, held)])}. Correct its name, or leave it out"
            )


_Found = Sequence[tuple[Row, Found]]


def _answer_columns(found: _Found) -> tuple[str, ...]:
    """Return the columns of the answers, the plainest name first (UserError: two that could both be
    a row's answer, and differ)."""
    names = in_order((name for _, columns in found for name in columns.answers), "answer")
    if all(len(columns.answers) < 2 for _, columns in found):
        return names
    # `label` beside `answer` may be the difficulty of a question: its values decide.
    names = tuple(name for name in names if _could_be_answer(found, name)) or names[:1]
    for other in names[1:]:
        _require_one_answer(found, names[0], other)
    return names


def _could_be_answer(found: _Found, name: str) -> bool:
    """Return whether the values of a column with a usual name can be answers."""
    rows = _asked(found, (name,))
    if rows:
        return could_be_answers(rows)
    held = [row.content[name] for row, columns in found if name in columns.answers]
    return all(isinstance(value, str | list) for value in held)


def _require_one_answer(found: _Found, first: str, other: str) -> None:
    """Refuse two columns that name different answers in a row, each read in its own way."""
    both = [(row, c) for row, c in found if {first, other} <= set(c.answers)]
    if not both:
        return
    refusal = two_columns(both[0][0].where, "answer", first, other)
    try:
        ways = {name: settle_answers(_asked(found, (name,))) for name in (first, other)}
    except UserError as error:
        raise refusal from error
    for row, columns in both:
        values = [_value(row.content[name]) for name in ways]
        if columns.choices is not None:
            texts, labels = columns.choices.texts, columns.choices.labels
            pairs = zip(ways.values(), values, strict=True)
            values = [way.position(value, texts, labels) for way, value in pairs]
        if values[0] != values[1]:
            raise two_columns(row.where, "answer", first, other)


def _asked(found: _Found, names: Sequence[str]) -> list[Asked]:
    """Return the labelled rows with choices."""
    asked = []
    for row, columns in found:
        column = _first(columns.answers, names)
        if columns.choices is None or column is None:
            continue
        try:
            value = _value(labelled(row.content, column))
        except NoLabel:
            continue
        asked.append(Asked(row.where, value, columns.choices.texts, columns.choices.labels))
    return asked


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in columns if name in names), None)


def _value(answer: Any) -> Any:
    """Return an answer without the types that only Parquet has, such as decimals."""
    return answer if isinstance(answer, bool | float) else as_json(answer)


def _open_answers(found: _Found, names: Sequence[str]) -> list[Any]:
    """Return the answers of the questions without choices."""
    return [
        row.content[column]
        for row, columns in found
        if columns.choices is None and (column := _first(columns.answers, names))
    ]


def _is_listed(answer: Any) -> bool:
    """Return whether an answer is a list of texts that is written as a text."""
    held = parsed(answer) if isinstance(answer, str) else None
    return isinstance(held, list) and all(isinstance(item, str) for item in held)


def _require_no_letters(found: _Found, names: Sequence[str], asked: Columns) -> None:
    """Refuse open questions whose answers are all letters: their choices are in other columns."""
    if asked.get("choices") == OPEN:
        return
    values = _open_answers(found, names)
    if len(values) > 1 and all(isinstance(v, str) and _LETTER.fullmatch(v.strip()) for v in values):
        where = next(row.where for row, columns in found if columns.choices is None)
        raise UserError(
            f"{where}: has no choices, and every answer is a letter; expected choices beside"
            " letters. Name their columns with --data.columns choices=COLUMN (or"
            f" choices=COLUMN+COLUMN), or say that the questions are open with choices={OPEN}"
        )


def _columns(found: Found) -> tuple[str | None, ...]:
    choices = found.choices.columns if found.choices else ()
    return (found.question, *choices, *found.others.values())


def _notes(found: Sequence[Found], answers: Sequence[str], settled: Settled) -> tuple[str, ...]:
    """Return notes on columns with unusual names and on the form of the answers."""
    used = {
        "question": [columns.question for columns in found if columns.question],
        "choices": ["+".join(c.choices.columns) for c in found if c.choices],
        "answer": list(answers),
        **{field: [c.others[field] for c in found if field in c.others] for field in OTHERS},
    }
    notes = []
    for field, names in used.items():
        names = sorted(set(names), key=lambda name: (-len(name), name))
        names = [n for n in names if n == names[0] or not names[0].startswith(f"{n}+")]
        if names and names != [field]:
            notes.append(f"{field} from {' or '.join(names[:3])}")
    if used["choices"] and answers and settled.fitted:
        reading = "true or false" if settled.reading == "boolean" else settled.reading
        notes.append(f"answers by {reading}")
    return tuple(notes)


def _no_question(content: Mapping[str, Any], asked: Columns) -> str:
    named = asked.get("question", "question")
    empty = " that is not empty" if named in content else ""
    return (
        f"has no column {named!r}{empty} (its columns are: {', '.join(map(str, content))});"
        " name the column with --data.columns question=COLUMN"
    )


def _extra(content: Mapping[str, Any], used: set[str | None]) -> dict[str, Any]:
    extra = {}
    for name, value in content.items():
        if name not in used:
            try:
                extra[as_json(str(name))] = as_json(value)
            except BadRow as reason:
                raise BadRow(f"column {name!r} {reason}") from reason
    return extra


def _known(value: Any, column: str) -> bool:
    known = as_json(value)
    known = {"true": True, "false": False, "1": True, "0": False}.get(str(known).casefold(), known)
    if not isinstance(known, int | float) or known not in (0, 1):
        raise BadRow(f"{column!r} must be true or false (or 1 or 0), is {known!r:.60}")
    return bool(known)


def _accepted(answer: Any, listed: bool) -> tuple[str, ...]:
    """Return the accepted answers of an open question; `listed` as in `Reader`."""
    if isinstance(answer, str):
        answer = parsed(answer) if listed else [answer]
    if not isinstance(answer, list | tuple):
        raise BadRow(
            f"has no choices, so its answer must be a text or a list of texts, is {answer!r:.60}"
        )
    return accepted(texts(answer, "answer"))


def _name(content: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    value = content[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables with an empty cell hold 1.0 for 1
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return clean(value, column)
