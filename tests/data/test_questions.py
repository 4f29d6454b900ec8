"""Questions to be answered: rows without answers, and mistakes named by their line."""

import json

import pytest

from cogcalib_jax.data.task import load_questions
from cogcalib_jax.errors import UserError

ROW = {"question": "Is it?", "choices": ["yes", "no"]}


@pytest.fixture
def load(tmp_path):
    def run(*rows):
        file = tmp_path / "mine.jsonl"
        file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return load_questions(file).questions

    return run


def test_answers_are_not_needed_and_not_read(load):
    rows = [ROW | {"id": "a"}, ROW | {"answer": "maybe", "id": 7}, ROW | {"passage": "It is."}]
    questions = load(*rows)
    assert [q.example.answer for q in questions] == [0, 0, 0]
    assert [q.example.id for q in questions][:2] == ["a", "7"]
    assert questions[2].example.passage == "It is."
    assert questions[1].where.endswith("mine.jsonl:2")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"choices": ["a", "b"]}, "has no column 'question'"),
        ({"question": "x"}, "has no choices"),
        ({"question": "x", "choices": ["a"]}, "has 1 choices"),
        ({"question": "x", "choices": ["a", "a "]}, "two of its choices are equal"),
        ({"question": " ", "choices": ["a", "b"]}, "'question' is empty"),
        ("{", "is not JSON"),
        (ROW | {"id": "a"}, "its id 'a' stands at "),
    ],
)
def test_a_bad_row_is_named_by_its_line(load, bad, message):
    with pytest.raises(UserError, match=r"mine\.jsonl:2: ") as caught:
        load(ROW | {"id": "a"}, bad)
    assert message in str(caught.value)


def test_an_empty_file_is_refused(load):
    with pytest.raises(UserError, match="has no rows"):
        load("")
