"""Facts about all rows of a split, and the rows that ask the same question."""

import unicodedata
from dataclasses import replace

import pytest

from cogcalib_jax.data.example import (
    Encoded,
    EncodedSplit,
    Example,
    clusters_of_predictions,
    exclude_one_another,
    question_clusters,
    question_hash,
    question_key,
    repeats_note,
)


def encoded(aliases=(), ids=((5,), (6,))):
    choices = aliases[:1] or ("yes", "no")
    example = Example(id="a", question="q?", choices=choices, answer=0, aliases=aliases)
    return Encoded(
        id="a",
        prompt="q?",
        completions=tuple(f" {choice}" for choice in choices),
        prompt_ids=(1, 2),
        completion_ids=ids[: len(choices)],
        answer=0,
        example=example,
    )


def test_an_open_answer_of_one_token_is_no_single_token_option():
    """Options space would find one option, which is always right."""
    open_split = EncodedSplit.of([encoded(("red", "crimson"))] * 2)
    assert open_split.is_open
    assert not open_split.single_token_options
    closed = EncodedSplit.of([encoded()] * 2)
    assert closed.single_token_options
    assert not closed.is_open
    assert not EncodedSplit().is_open


def test_one_token_is_divided_by_its_characters_in_training_too():
    words = EncodedSplit.of([encoded()] * 2)  # "yes" and "no", a token each
    assert words.needs_trees("chars")
    assert not words.needs_trees("mean") and not words.needs_trees("sum")
    letters = EncodedSplit.of([replace(encoded(), completions=(" A", " B"))])
    assert not letters.needs_trees("chars")
    several = EncodedSplit.of([encoded(ids=((5, 7), (6,)))])
    assert all(several.needs_trees(rule) for rule in ("mean", "sum", "chars"))


def test_a_slice_of_a_split_is_asked_as_the_split_is():
    """Validation scores the first training rows, also by pmi."""
    split = EncodedSplit([encoded()] * 3)
    split.pmi_prefix_ids, split.protocol = (1, 9), "published"
    part = split[:2]
    assert isinstance(part, EncodedSplit) and len(part) == len(part.lengths) == 2
    assert (part.pmi_prefix_ids, part.protocol) == (split.pmi_prefix_ids, split.protocol)
    assert split[-1] is split[2]


@pytest.mark.parametrize(
    ("completions", "exclusive"),
    [
        ([(5,), (6,)], True),
        ([(5, 1), (5, 2), (6,)], True),
        ([(7,), (5, 2), (5,)], False),
        ([(5, 2, 9), (4,), (5, 3), (5, 2)], False),
        ([(5,), (5,)], False),
    ],
)
def test_options_exclude_one_another_unless_one_begins_with_another(completions, exclusive):
    assert exclude_one_another(completions) is exclusive
    asked = Example("a", "q", tuple("abcd"[: len(completions)]), answer=0)
    other = Encoded("b", "q", ("x", "y"), (1,), ((5,), (6,)), 0, asked)
    texts = tuple(map(str, range(len(completions))))
    rows = [other, Encoded("a", "q", texts, (1,), tuple(completions), 0, asked)]
    assert EncodedSplit(rows).exclusive_options is exclusive


def ask(question, choices=("yes", "no"), **more):
    return Example(id=question, question=question, choices=choices, answer=0, **more)


def test_clusters_are_numbered_by_first_appearance():
    rows = [ask("b?"), ask("a?"), ask(" b? ", choices=("no", "yes")), ask("a?", passage="Text.")]
    assert question_clusters(rows).tolist() == [0, 1, 0, 2]
    assert repeats_note("test", question_clusters(rows)) == (
        "test: 4 rows, 3 different questions; repeats of a question count as one in intervals,"
        " noise floors and p-values",
    )
    assert repeats_note("test", question_clusters(rows[:2])) == ()


def test_a_hash_tells_questions_apart_as_their_keys_do():
    rows = [
        ask("a?"),
        ask("a?", choices=("no", "yes")),
        ask("A?"),
        ask("a?", choices=("yes", "No")),
        ask("a", passage="?"),
        ask("a?", choices=("yes",), aliases=("yes",)),
    ]
    equal = {(question_key(a) == question_key(b)) for a in rows[:1] for b in rows[1:2]}
    assert equal == {True} and question_hash(rows[0]) == question_hash(rows[1])
    assert (
        len({question_hash(row) for row in rows}) == len({question_key(row) for row in rows}) == 5
    )


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"question_hash": "x", "prompt": "a"}, {"question_hash": "x", "prompt": "b"}, True),
        (
            {"question": "Caf\u00e9?"},
            {"question": unicodedata.normalize("NFD", "Caf\u00e9?")},
            True,
        ),
        ({"question": "a?", "id": 1}, {"question": "a? ", "id": 2}, True),
        (
            {"question": "a?", "choices": ["x", "y"]},
            {"question": "a?", "choices": ["y", "x"]},
            True,
        ),
        (
            {"question": "a?", "choices": ["x", "y"]},
            {"question": "a?", "choices": ["x", "z"]},
            False,
        ),
        ({"question": "a?", "passage": "p"}, {"question": "a?"}, False),
        ({"question": "5\u00b2?"}, {"question": "52?"}, False),
        ({"prompt": "a", "completions": [" x"]}, {"prompt": "a", "completions": [" x"]}, True),
        ({"prompt": "a", "completions": [" x"]}, {"prompt": "a", "completions": [" y"]}, False),
        ({"id": 7}, {"id": "7"}, True),
        ({"id": 7.0}, {"id": 7}, True),
        ({"id": 7}, {"id": 8}, False),
        ({}, {}, False),
        ({"question": None}, {"question": ["a"]}, False),
    ],
)
def test_rows_of_predictions_are_joined_by_what_they_say_of_the_question(first, second, same):
    assert clusters_of_predictions([first, second, first]).tolist()[:2] == [0, 0 if same else 1]
