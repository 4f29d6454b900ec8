"""HotpotQA, TriviaQA, NQ-open: a question answered in one's own words.

What is accepted beside the reference differs: HotpotQA has one answer a question, TriviaQA the
names Wikipedia knows a thing by, NQ-open what several annotators marked.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cogcalib_jax.data.example import BadRow, Example, NoLabel
from cogcalib_jax.data.json_values import as_json
from cogcalib_jax.data.tasks.fields import (
    accepted,
    clean,
    content_id,
    fold_case,
    labelled,
    text,
    texts,
)

# What an answer of TriviaQA's test split is.
_UNKNOWN = "<unk>"


def _open(
    id: str, question: str, answers: tuple[str, ...], extra: dict[str, Any] | None = None
) -> Example:
    """An open question; `answers` as `fields.accepted` gives them, the reference first."""
    return Example(
        id=id,
        question=question,
        choices=answers[:1],
        answer=0,
        aliases=answers,
        extra=as_json(extra or {}),
    )


def read_hotpotqa(row: Mapping[str, Any], number: int) -> Example:
    """The question alone: it is answered from what the model knows."""
    del number
    return _open(
        text(row, "id"),
        text(row, "question"),
        accepted([clean(labelled(row, "answer"), "answer")]),
        {name: row[name] for name in ("type", "level") if name in row},
    )


def read_hotpotqa_context(row: Mapping[str, Any], number: int) -> Example:
    """The question after its ten paragraphs, two of which it was written from.

    A paragraph is a line: title, colon, sentences. The same question with other paragraphs beside
    the two would be its own leak, so equal questions are one group.
    """
    example = read_hotpotqa(row, number)
    context = row.get("context")
    if not isinstance(context, Mapping) or not {"title", "sentences"} <= set(context):
        raise BadRow('has no "context" with "title" and "sentences"')
    titles, paragraphs = texts(context["title"], "context.title"), context["sentences"]
    if not isinstance(paragraphs, list | tuple) or len(paragraphs) != len(titles):
        raise BadRow(f"its {len(titles)} titles do not match its paragraphs")
    if not titles:
        raise BadRow("its context has no paragraphs")
    passage = "\n".join(
        f"{title}: {_joined(sentences)}"
        for title, sentences in zip(titles, paragraphs, strict=True)
    )
    return replace(example, passage=passage, group=fold_case(example.question))


def _joined(sentences: Any) -> str:
    """Sentences as one line; they carry the space between them, mostly."""
    if not isinstance(sentences, list | tuple):
        raise BadRow(f"a paragraph of its context must be a list of texts, is {sentences!r:.60}")
    return " ".join(clean(s, "context.sentences") for s in sentences if not _blank(s))


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def read_triviaqa(row: Mapping[str, Any], number: int) -> Example:
    """`answer.value`, then its aliases; `question_id` is kept, but other configs repeat it."""
    question = text(row, "question")
    answer = labelled(row, "answer")
    if not isinstance(answer, Mapping):
        raise BadRow(f'answer must hold "value" and "aliases", is {answer!r:.60}')
    value = labelled(answer, "value")
    if value == _UNKNOWN:
        raise NoLabel(f"has no answer (answer.value is {value!r})")
    names = [value]
    for field in ("aliases", "normalized_aliases"):
        more = answer.get(field) or ()
        if not isinstance(more, list | tuple):
            raise BadRow(f"answer.{field} must be a list of texts, is {more!r:.60}")
        # A name of punctuation alone is normalised to nothing.
        names += [name for name in more if not _blank(name)]
    return _open(
        content_id(number, question),
        question,
        accepted(clean(name, "answer") for name in names),
        {"question_id": row["question_id"]} if row.get("question_id") else {},
    )


def read_nq_open(row: Mapping[str, Any], number: int) -> Example:
    """Rows have no id; `answer` is a list."""
    question = text(row, "question")
    answers = accepted(texts(labelled(row, "answer"), "answer"))
    return _open(content_id(number, question), question, answers)
