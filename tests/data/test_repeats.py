"""Which rows ask the same question, of examples and of rows in files of predictions."""

import unicodedata

import pytest

from cogcalib_jax.data.example import (
    Example,
    clusters_of_predictions,
    question_clusters,
    question_hash,
    question_key,
    repeats_note,
)


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
        ({"id": 7}, {"id": 8}, False),
        ({}, {}, False),
        ({"question": None}, {"question": ["a"]}, False),
    ],
)
def test_rows_of_predictions_are_joined_by_what_they_say_of_the_question(first, second, same):
    assert clusters_of_predictions([first, second, first]).tolist()[:2] == [0, 0 if same else 1]
