"""One's own questions: {"question", "choices"?: [...], "answer", "passage"?, "group"?, "id"?}."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.tasks.fields import (
    accepted,
    as_read,
    clean,
    content_id,
    labelled,
    matching_choices,
    text,
    texts,
)

_YES_NO = {True: ("yes", "true"), False: ("no", "false")}
_FIELDS = ("question", "choices", "answer", "passage", "group", "id")


def read_custom(row: Mapping[str, Any], number: int) -> Example:
    """`answer` is the text of a choice, its letter ("A"), its index from 0, or true/false.

    Without `choices` (absent or null) the question is open, and `answer` is a text, or a list of
    all that are accepted with the reference first. Fields beyond the named ones are kept in
    `extra`; `known` among them, where it is there, says whether the base knows the answer.
    """
    question = text(row, "question")
    passage = clean(row["passage"], "passage") if row.get("passage") else ""
    aliases: tuple[str, ...] = ()
    if row.get("choices") is None:
        aliases = _accepted(labelled(row, "answer"))
        choices, answer = aliases[:1], 0
    else:
        choices = texts(row["choices"], "choices")
        if len(set(map(as_read, choices))) != len(choices):
            raise BadRow("two of its choices are equal")
        answer = _answer(labelled(row, "answer"), choices)
    return Example(
        id=_name(row, "id") or content_id(number, passage, question, *choices),
        question=question,
        choices=choices,
        answer=answer,
        passage=passage,
        group=_name(row, "group"),
        extra=_extra(row),
        aliases=aliases,
    )


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: value for key, value in row.items() if key not in _FIELDS}
    if "group" in row and row["group"] is None:
        # `Example.group` cannot tell a group that is null from one that is absent.
        extra["group"] = None
    known = extra.pop("known", None)
    if known is None:
        return extra
    if known not in (0, 1):
        raise BadRow(f"'known' must be true or false (or 1 or 0), is {known!r:.60}")
    return extra | {"known": bool(known)}


def _accepted(answer: Any) -> tuple[str, ...]:
    """The accepted answers of an open question."""
    if isinstance(answer, str):
        answer = [answer]
    if not isinstance(answer, list | tuple):
        raise BadRow(
            f"has no choices, so its answer must be a text or a list of texts, is {answer!r:.60}"
        )
    return accepted(texts(answer, "answer"))


def _name(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return clean(value, field)


def _answer(answer: Any, choices: Sequence[str]) -> int:
    if isinstance(answer, bool):
        found = {i for word in _YES_NO[answer] for i in matching_choices(word, choices)}
    elif isinstance(answer, int):
        found = {answer} & set(range(len(choices)))
    elif isinstance(answer, str):
        found = set(matching_choices(answer, choices))
        if len(found) > 1:
            raise BadRow(
                f"answer {answer!r:.60} fits {len(found)} choices that differ in case; write it as"
                " the choice is written"
            )
        letters = ascii_uppercase[: len(choices)]
        if len(answer.strip()) == 1 and answer.strip() in letters:
            found.add(letters.index(answer.strip()))
    else:
        found = set()
    if len(found) == 1:
        return found.pop()
    if found:
        raise BadRow(f"answer {answer!r} is the letter of one choice and the text of another")
    raise BadRow(
        f"answer {answer!r:.60} is no choice: give the text of a choice, its letter "
        f'("A"), or its index from 0 to {len(choices) - 1} as a number'
    )
