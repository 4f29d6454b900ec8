"""Reading the fields of a row, with a reason where one cannot be used.

Texts are compared in three ways, each for its own purpose:

- `as_read`: equal for a reader. Choices (`check`, `read_custom`) and questions
  (`repeats.question_key`: repeats within a split, repeats across splits, clusters of intervals).
- `fold_case`: the same, and case does not count. It only serves where a wrong match costs little:
  an answer that is no choice as written (`matching_choices`), rows of different splits that differ
  in case alone and have the same answer (`splits`), groups that are found by their text (twins of
  WinoGrande, paragraphs of HotpotQA), and what a dry run counts and reports.
- `evaluation.open_answers.normalise_answer`: SQuAD's rules, for scores of open answers. `accepted`
  folds case as these scores do.

No comparison folds compatibility forms (NFKC): 5² is not 52.
"""

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cogcalib_jax.data.example import BadRow, Example, NoLabel

# A value of "" or -1 is how the Hub stores the answers of its unlabelled test splits.
_UNLABELLED = (None, "", -1, "-1")
# None belongs into a text but white space: the rest is left of a damaged file, or meant for the
# terminal it is shown on, as U+009B is, which is ESC [ in one. Its neighbours stand for quotation
# marks in real texts that were once decoded wrongly, and those that turn the direction of writing
# in Arabic and Hebrew; they are escaped where they are shown.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\x9b]")


def text(row: Mapping[str, Any], name: str) -> str:
    """A text field, without outer white space; must hold something."""
    if name not in row:
        raise BadRow(f"has no field {name!r} (its fields are: {', '.join(map(str, row))})")
    return clean(row[name], name)


def clean(value: Any, name: str) -> str:
    """`value` as a text that a tokenizer can take."""
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
    """A list of texts."""
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name!r} must be a list of texts, is {value!r:.60}")
    return tuple(clean(item, f"{name}[{i}]") for i, item in enumerate(value))


def labelled(row: Mapping[str, Any], name: str) -> Any:
    """The answer field.

    Raises:
        NoLabel: absent or empty.
    """
    answer = row.get(name)
    # True == 1 and False == 0, so membership alone would also compare booleans with -1.
    if not isinstance(answer, bool) and answer in _UNLABELLED:
        raise NoLabel(f"has no answer ({name} is {answer!r})")
    return answer


def accepted(answers: Iterable[str]) -> tuple[str, ...]:
    """Accepted answers of an open question in their order, each once; white space is one space.

    Answers that differ in case alone are one, as every score of open answers folds case. Unicode
    is left as it is: scores do not normalise it, so both forms of an accent may be needed.

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
    """Where `label`, a text or a whole number, stands among `labels`."""
    key = str(label).strip() if isinstance(label, str | int) else label
    if isinstance(label, bool) or key not in labels:
        raise BadRow(f"{name} {label!r:.60} is none of the labels {', '.join(labels)}")
    return labels.index(key)


def content_id(number: int, *parts: str) -> str:
    """An id for rows without one: their number in the file and a hash of their content."""
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8")).hexdigest()
    return f"{number:05d}-{digest[:8]}"


def near_misses(name: str, names: Iterable[str]) -> list[str]:
    """Up to five of `names` that may have been meant by `name`, the likeliest first."""
    names = list(names)
    key = re.sub(r"[\s-]+", "_", name.strip().lower())
    near = difflib.get_close_matches(key, names, n=5)
    near += [other for other in names if key and key in other and other not in near]
    return near[:5]


def as_read(value: str) -> str:
    """Return `value` as a reader sees it: Unicode NFC, runs of white space as one space.

    Case stays, for it tells 5 mW from 5 MW; so do compatibility forms, which tell 5² from 52.
    """
    return " ".join(unicodedata.normalize("NFC", value).split())


def fold_case(value: str) -> str:
    """Return `as_read(value)` without case."""
    return as_read(as_read(value).casefold())


def matching_choices(answer: str, choices: Sequence[str]) -> list[int]:
    """Return the indices of the choices that `answer` writes out, ascending.

    Those that a reader sees as the same text come first; case is folded only if there are none.
    """
    for same in (as_read, fold_case):
        if found := [i for i, choice in enumerate(choices) if same(choice) == same(answer)]:
            return found
    return []


def check(example: Example, right_choice_may_repeat: bool = False) -> Example:
    """`example` itself.

    Raises:
        BadRow: fewer than two choices, an answer outside them, or one that stands twice (unless
            it may, as in published files, which are scored by their key). Two equal *wrong*
            choices pass: official OpenBookQA rows have them (train 10-317).
            An open question has its reference as its only choice.
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
        raise BadRow(f"the right choice {example.choices[example.answer]!r:.60} stands there twice")
    return example


def right_choice_repeats(example: Example) -> bool:
    """Return whether the right choice stands twice, as a reader sees it."""
    choices = [as_read(choice) for choice in example.choices]
    return choices.count(choices[example.answer]) > 1
