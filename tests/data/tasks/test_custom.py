"""The user's own rows become examples, or are refused with the reason."""

from dataclasses import replace

import pytest

from cogcalib_jax.data.example import BadRow, NoLabel
from cogcalib_jax.data.formats import Row
from cogcalib_jax.data.tasks.custom import settle
from cogcalib_jax.data.tasks.fields import check


def read_custom(row, number):
    """Read a row that is all there is of its task."""
    return settle([Row("rows", number, row)], {})(row, number)


def custom_row(**changes):
    return {"question": "Which one?", "choices": ["red", "green", "blue"], "answer": 1, **changes}


@pytest.mark.parametrize(
    ("answer", "index"),
    [(2, 2), (0, 0), ("green", 1), (" Green ", 1), ("C", 2), ("blue", 2)],
)
def test_a_custom_answer_is_an_index_a_letter_or_a_text(answer, index):
    assert read_custom(custom_row(answer=answer), 1).answer == index


@pytest.mark.parametrize("answer", ["5 MW", "5  MW ", 1, "B"])
def test_choices_that_differ_in_case_are_two(answer):
    row = custom_row(choices=["5 mW", "5 MW", "5 kW"], answer=answer)
    assert read_custom(row, 1).answer == 1
    # A case that no choice has still finds the only one that fits.
    assert read_custom({**row, "answer": "5 KW"}, 1).answer == 2


def test_a_custom_answer_may_be_a_boolean():
    row = custom_row(choices=["No", "Yes", "yesterday"], answer=True)
    assert read_custom(row, 1).answer == 1
    assert read_custom({**row, "answer": False}, 1).answer == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": 3}, "is not a choice"),
        ({"answer": "one"}, "expected an index from 0 to 2"),
        ({"answer": 1.5}, "is not a choice"),
        ({"answer": True}, "is not a choice"),
        ({"answer": "purple"}, "is not a choice"),
        ({"choices": ["red", "red "], "answer": 0}, "equal"),
        ({"choices": ["red", 3]}, "must be a text"),
        ({"choices": None}, "has no choices, so its answer must be a text"),
        ({"choices": "red"}, "must be a list"),
        ({"group": 1.5}, "must be a text"),
        ({"known": "yes"}, "'known' must be true or false"),
        ({"known": [1]}, "'known' must be true or false"),
        ({"known": 2}, "'known' must be true or false"),
    ],
)
def test_a_custom_row_is_refused_with_the_reason(changes, reason):
    with pytest.raises(BadRow, match=reason):
        read = settle([Row("rows", 1, custom_row())], {})
        read(custom_row(**changes), 1)


def test_a_custom_row_keeps_what_it_has_besides():
    example = read_custom(custom_row(id=7, group=3, passage="Text.", topic="art"), 1)
    assert (example.id, example.group, example.passage) == ("7", "3", "Text.")
    assert example.extra == {"topic": "art"}
    # A group that is null is told apart from none at all.
    assert read_custom(custom_row(group=None), 1).extra == {"group": None}


@pytest.mark.parametrize(
    ("known", "extra"),
    [(True, {"known": True}), (0, {"known": False}), (1.0, {"known": True}), (None, {})],
)
def test_a_custom_row_may_say_whether_the_base_knows_it(known, extra):
    assert read_custom(custom_row(known=known), 1).extra == extra


@pytest.mark.parametrize(
    ("answer", "aliases"), [("Red ", ("Red",)), (["red", "RED", "crimson"], ("red", "crimson"))]
)
def test_a_custom_row_without_choices_is_an_open_question(answer, aliases):
    row = {"question": "Which colour?", "answer": answer, "passage": "Red.", "topic": "art"}
    for choices in ({}, {"choices": None}):
        example = check(read_custom({**row, **choices}, 1))
        assert example.is_open
        assert (example.aliases, example.choices, example.answer) == (aliases, aliases[:1], 0)
        assert (example.passage, example.extra) == ("Red.", {"topic": "art"})


@pytest.mark.parametrize(
    ("answer", "refusal", "reason"),
    [
        (2, BadRow, "has no choices, so its answer must be a text or a list"),
        (True, BadRow, "has no choices"),
        (["red", ""], BadRow, "is empty"),
        (["red", 3], BadRow, "must be a text"),
        ([], NoLabel, "no accepted answer"),
        ("", NoLabel, "no answer"),
    ],
)
def test_an_open_custom_row_is_refused_with_the_reason(answer, refusal, reason):
    with pytest.raises(refusal, match=reason):
        read_custom({"question": "Which colour?", "answer": answer}, 1)


def test_the_only_choice_of_an_open_question_is_its_reference():
    example = read_custom({"question": "Which colour?", "answer": ["red", "crimson"]}, 1)
    assert not read_custom(custom_row(), 1).is_open
    for wrong in ({"choices": ("crimson",)}, {"choices": ("red", "crimson")}, {"answer": 1}):
        with pytest.raises(BadRow, match="first accepted answer"):
            check(replace(example, **wrong))
