"""Stored rows become examples, or are refused with the reason."""

import pytest

from cogcalib_jax.data.example import BadRow, NoLabel
from cogcalib_jax.data.registry import TASKS
from cogcalib_jax.data.tasks.custom import read_custom
from cogcalib_jax.data.tasks.fields import check
from cogcalib_jax.data.tasks.winogrande import group_twins


def lettered_row(**changes):
    row = {
        "id": "x1",
        "question": "Which one?",
        "choices": {"text": ["a cat", "a dog", "a cow"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }
    return {**row, **changes}


def custom_row(**changes):
    return {"question": "Which one?", "choices": ["red", "green", "blue"], "answer": 1, **changes}


@pytest.mark.parametrize(
    ("labels", "key", "answer"),
    [("ABC", "C", 2), ("123", "1", 0), ("123", 2, 1), ("ABC", " B ", 1)],
)
def test_an_answer_key_is_looked_up_among_the_rows_own_labels(labels, key, answer):
    choices = {"text": ["a cat", "a dog", "a cow"], "label": list(labels)}
    read = TASKS["arc_challenge"].read
    assert read(lettered_row(choices=choices, answerKey=key), 1).answer == answer


def test_openbookqa_and_arc_name_the_question_differently():
    row = lettered_row(question_stem="A stem")
    assert TASKS["openbookqa"].read(row, 1).question == "A stem"
    assert TASKS["arc_easy"].read(row, 1).question == "Which one?"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answerKey": "D"}, "none of the labels A, B, C"),
        ({"answerKey": True}, "none of the labels"),
        ({"question": "  "}, "'question' is empty"),
        ({"question": 3}, "must be a text"),
        ({"question": "half \ud800"}, "lone surrogate"),
        ({"choices": ["a", "b"]}, '"text" and "label"'),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "do not match"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "do not match"),
        ({"choices": {"text": "ab", "label": ["A", "B"]}}, "must be a list of texts"),
        ({"choices": {"text": ["a", ""], "label": ["A", "B"]}}, "is empty"),
    ],
)
def test_a_lettered_row_is_refused_with_the_reason(changes, reason):
    with pytest.raises(BadRow, match=reason):
        TASKS["arc_easy"].read(lettered_row(**changes), 1)


def test_a_missing_field_is_refused_with_the_fields_there_are():
    with pytest.raises(BadRow, match="no field 'question_stem' .*answerKey"):
        TASKS["openbookqa"].read(lettered_row(), 1)


@pytest.mark.parametrize("key", ["", None, -1, "-1"])
def test_an_absent_answer_is_told_apart_from_a_wrong_one(key):
    with pytest.raises(NoLabel):
        TASKS["arc_easy"].read(lettered_row(answerKey=key), 1)


def test_boolq_answers_are_booleans():
    row = {"question": "is it", "passage": "It is.", "answer": False}
    example = TASKS["boolq"].read(row, 7)
    assert (example.choices[example.answer], example.passage) == ("no", "It is.")
    assert TASKS["boolq"].read({**row, "answer": True}, 7).answer == 0
    with pytest.raises(BadRow, match="true or false"):
        TASKS["boolq"].read({**row, "answer": "yes"}, 7)
    with pytest.raises(NoLabel):
        TASKS["boolq"].read({**row, "answer": -1}, 7)


def test_rows_without_id_get_one_from_place_and_content():
    row = {"sentence": "The _ is red.", "option1": "car", "option2": "bus", "answer": "2"}
    read = TASKS["winogrande_s"].read
    assert read(row, 3).id == read(row, 3).id
    assert len({read(row, 3).id, read(row, 4).id, read({**row, "option1": "van"}, 3).id}) == 3
    assert read(row, 3).answer == 1
    with pytest.raises(BadRow, match="no blank"):
        read({**row, "sentence": "No gap."}, 1)


def test_winogrande_twins_share_a_group_and_strangers_do_not():
    def row(sentence, first, second):
        read = TASKS["winogrande_s"].read
        stored = {"sentence": sentence, "option1": first, "option2": second, "answer": "1"}
        return read(stored, 1)

    examples = [
        row("Ann lent Bo the pen because _ was kind.", "Ann", "Bo"),
        row("The cup did not fit the box as the _ was big.", "cup", "box"),
        row("Ann lent Bo the pen because _ was in need.", "Bo", "Ann"),
        row("Ann never sings, whereas all day long we hear _ next door.", "Ann", "Bo"),
        row("Ann lent Bo the pen because _ was kind.", "Ann", "Carl"),
    ]
    groups = [example.group for example in group_twins(examples)]
    assert groups[0] == groups[2]
    assert len(set(groups)) == 4


@pytest.mark.parametrize(
    ("answer", "index"),
    [(2, 2), (0, 0), ("green", 1), (" Green ", 1), ("C", 2), ("blue", 2)],
)
def test_a_custom_answer_is_an_index_a_letter_or_a_text(answer, index):
    assert read_custom(custom_row(answer=answer), 1).answer == index


def test_a_custom_answer_may_be_a_boolean():
    row = custom_row(choices=["No", "Yes"], answer=True)
    assert read_custom(row, 1).answer == 1
    assert read_custom({**row, "answer": False}, 1).answer == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": 3}, "is no choice"),
        ({"answer": "1"}, "as a number"),
        ({"answer": 1.0}, "is no choice"),
        ({"answer": True}, "is no choice"),
        ({"answer": "purple"}, "is no choice"),
        ({"choices": ["B", "A"], "answer": "A"}, "letter of one choice and the text of another"),
        ({"choices": ["red", "Red "], "answer": 0}, "equal"),
        ({"choices": ["red", 3]}, "must be a text"),
        ({"choices": None}, "has no choices, so its answer must be a text"),
        ({"choices": "red"}, "must be a list"),
        ({"group": 1.5}, "must be a text"),
    ],
)
def test_a_custom_row_is_refused_with_the_reason(changes, reason):
    with pytest.raises(BadRow, match=reason):
        read_custom(custom_row(**changes), 1)


def test_a_custom_row_keeps_what_it_has_besides():
    example = read_custom(custom_row(id=7, group=3, passage="Text.", topic="art"), 1)
    assert (example.id, example.group, example.passage) == ("7", "3", "Text.")
    assert example.extra == {"topic": "art"}


def test_equal_wrong_choices_pass_but_an_equal_right_one_does_not():
    choices = {"text": ["a cat", "a cat", "a cow"], "label": ["A", "B", "C"]}
    read = TASKS["arc_easy"].read
    assert check(read(lettered_row(choices=choices), 1)).answer == 2
    with pytest.raises(BadRow, match="twice"):
        check(read(lettered_row(choices=choices, answerKey="B"), 1))
    one = {"text": ["a cat"], "label": ["A"]}
    with pytest.raises(BadRow, match="at least 2"):
        check(read(lettered_row(choices=one, answerKey="A"), 1))
