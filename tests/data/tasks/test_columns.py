"""Which columns are read as what; what could be two things, or would be lost, is refused."""

import json

import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.loading import load_splits, load_test
from cogcalib_jax.data.task import load_questions
from cogcalib_jax.errors import UserError

WORDS = ["red", "green", "blue"]


def write(folder, *rows, copies=1):
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * copies))
    return file


def load(folder, *rows, **fields):
    config = DataConfig(task="custom", path=str(write(folder, *rows)), **fields)
    return load_test(config, 0)


def two(**columns):
    """Two rows with these columns, which hold what is right for the first and the second row."""
    return [
        {"question": f"Which {i}?"} | {name: values[i] for name, values in columns.items()}
        for i in range(2)
    ]


def test_the_line_on_what_was_read(tmp_path):
    rows = [
        {"Stem": "Which?", "options": WORDS, "answerKey": "a", "source": "me", "date": None},
        {"Stem": "Which one?", "options": [*WORDS, "grey"], "answerKey": "d", "topic": "x"},
    ]
    _, (read,) = load(tmp_path, *rows)
    assert read == (
        "read train.jsonl: 2 questions with 3 to 4 options; question from Stem; choices from"
        " options; answer from answerKey; answers by letter; columns not used: source, topic"
    )


@pytest.mark.parametrize(
    "column",
    [
        {"alternatives": WORDS},
        {"candidates": {"A": "red", "B": "green"}},
        {"mcq": {"text": WORDS, "label": ["A", "B", "C"]}},
        {"variants": [{"label": "A", "text": "red"}, {"label": "B", "text": "green"}]},
        {"distractors": '["red", "green"]'},
        {"distractor1": "red", "distractor2": "green"},
        {"answer_a": "red", "answer_b": "green"},
        {"ending0": "red", "ending1": "green"},
    ],
)
def test_what_looks_like_choices_never_passes_as_an_open_question(tmp_path, column):
    rows = [{"question": f"Which {i}?", "answer": "red"} | column for i in range(40)]
    named = "+".join(column)
    for on_bad_row in ("error", "skip"):
        with pytest.raises(UserError, match="looks like choices") as caught:
            load(tmp_path, *rows, on_bad_row=on_bad_row)
        assert f"--data.columns choices={named}" in str(caught.value)
    # Both ways out work.
    closed, _ = load(tmp_path, *rows, columns=(f"choices={named}",))
    assert {row.choices[row.answer] for row in closed} == {"red"} and not closed[0].is_open
    opened, _ = load(tmp_path, *rows, columns=("choices=none",))
    assert opened[0].aliases == ("red",)


@pytest.mark.parametrize(
    "column",
    [
        {"source": "a book", "author": "x"},
        {"meta": {"title": "x", "author": "y"}},
        {"score": [1, 2]},
        {"tags": ["one"]},
        {"time1": 3, "time2": 4},
        {"known": True, "passage": "Red, green."},
    ],
)
def test_other_columns_do_not_look_like_choices(tmp_path, column):
    rows = [{"question": f"Which {i}?", "answer": "red"} | column for i in range(2)]
    assert load(tmp_path, *rows)[0][0].is_open


@pytest.mark.parametrize("answers", ["ABAB", "abcd", ["(A)", "(B)"], ["A.", "b)"]])
def test_open_questions_that_are_all_answered_by_letters_are_refused(tmp_path, answers):
    rows = [{"question": f"Which {i}? A red B blue", "answer": a} for i, a in enumerate(answers)]
    with pytest.raises(UserError, match="every answer is a letter.*--data.columns choices="):
        load(tmp_path, *rows)
    assert load(tmp_path, *rows, columns=("choices=none",))[0][0].is_open
    assert load(tmp_path, *rows, {"question": "Whose?", "answer": "Ada's"})[0][0].is_open


@pytest.mark.parametrize(
    ("columns", "first", "second"),
    [
        ({"choices": [WORDS] * 2, "options": [WORDS[::-1]] * 2}, "choices", "options"),
        (
            {"A": ["red"] * 2, "B": ["green"] * 2, "choices": [WORDS] * 2},
            "A+B",
            "choices",
        ),
        (
            {"A": ["x"] * 2, "B": ["y"] * 2, "choice1": ["p"] * 2, "choice2": ["q"] * 2},
            "A+B",
            "choice1+choice2",
        ),
    ],
)
def test_two_columns_that_could_be_the_choices_are_refused(tmp_path, columns, first, second):
    rows = two(**columns, answer=[0, 1])
    with pytest.raises(UserError, match="could both be the choices") as caught:
        load(tmp_path, *rows)
    assert f"choices={first} or choices={second}" in str(caught.value)
    for chosen in (first, second):
        assert load(tmp_path, *rows, columns=(f"choices={chosen}",))[0][1].answer == 1


def test_equal_columns_of_choices_are_no_contradiction(tmp_path):
    rows = two(A=["red"] * 2, B=["blue"] * 2, choices=[["red", "blue"]] * 2, answer=["A", "B"])
    assert [row.answer for row in load(tmp_path, *rows)[0]] == [0, 1]


def test_two_columns_that_could_be_the_answer_are_refused_if_they_differ(tmp_path):
    rows = two(choices=[WORDS] * 2, answer=[0, 1], label=[0, 2])
    with pytest.raises(UserError, match=r":2: columns 'answer' and 'label' could both be the ans"):
        load(tmp_path, *rows)
    assert load(tmp_path, *rows, columns=("answer=label",))[0][1].answer == 2
    # The same answer in two ways, and a column whose values are no answers.
    same = two(choices=[WORDS] * 2, answer=["red", "blue"], label=[0, 2], target=["easy", "hard"])
    examples, (read,) = load(tmp_path, *same)
    assert [row.answer for row in examples] == [0, 2]
    assert examples[0].extra == {"target": "easy"} and "columns not used: target" in read


def test_two_columns_that_could_be_the_question_are_refused(tmp_path):
    rows = [{"question": "Which?", "Question": "Who?", "choices": WORDS, "answer": 0}]
    with pytest.raises(UserError, match="'question' and 'Question' could both be the question"):
        load(tmp_path, *rows)


def test_the_answer_may_have_another_name_in_another_file(tmp_path):
    rows = two(choices=[WORDS] * 2, answer=[0, 2])
    rows[1]["answerKey"] = rows[1].pop("answer")
    assert [row.answer for row in load(tmp_path, *rows)[0]] == [0, 2]


def test_empty_choices_at_the_end_are_none_and_a_gap_is_refused(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("question,A,B,C,D,answer,hint\nx?,r,g,,,B,\ny?,r,g,b,w,D,h\n")
    examples, _ = load_test(DataConfig(task="custom", path=str(file)), 0)
    assert [len(row.choices) for row in examples] == [2, 4]
    assert [row.extra for row in examples] == [{"hint": None}, {"hint": "h"}]
    file.write_text("question,A,B,C,D,answer\nx?,r,,b,,C\ny?,r,g,b,w,D\n")
    with pytest.raises(UserError, match="rows.csv:2: column 'B' is empty, and 'C' behind it"):
        load_test(DataConfig(task="custom", path=str(file)), 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choices": "red, green"}, "write it as JSON"),
        ({"choices": {"A": "red", "B": 3}}, "must be a text"),
        ({"choices": {"text": WORDS, "label": ["A", "B"]}}, "do not match its 2 labels"),
        ({"choices": {"text": WORDS, "label": ["A", "A", "B"]}}, "do not match its 3 labels"),
        ({"choices": [{"label": "A"}, {"label": "B"}]}, "must be a text"),
        ({"choices": 7}, "must be a list of texts"),
    ],
)
def test_choices_that_cannot_be_read_say_why(tmp_path, changes, reason):
    row = {"question": "Which?", "choices": WORDS, "answer": "red"}
    with pytest.raises(UserError, match=reason):
        load(tmp_path, row, row | changes)


def test_named_columns_that_are_not_there_are_refused(tmp_path):
    row = {"question": "Which?", "choices": WORDS, "answer": 0}
    for columns, reason in [
        (("question=stem",), "has no column 'stem' .*are: question, choices, answer"),
        (("choices=opts",), "has no choices in column 'opts'"),
        (("choices=x+y",), "has no choices in column 'x\\+y'"),
        (("answer=key",), "none of its 1 rows has an answer"),
        (("group=topic",), "group=topic: no row has this column; expected one of question, choi"),
    ]:
        with pytest.raises(UserError, match=reason):
            load(tmp_path, row, columns=columns)


def test_absent_is_null_nan_or_an_empty_cell(tmp_path):
    row = {"question": "Which?", "choices": WORDS, "answer": 0}
    absent = {"passage": None, "group": None, "id": None, "known": None}
    gaps = {"passage": float("nan"), "group": float("nan"), "id": float("nan")}
    examples, _ = load(tmp_path, row | absent, row | gaps)
    for example in examples:
        # A group that is null is kept apart from rows without the column, for --by.
        assert (example.passage, example.group, example.extra) == ("", None, {"group": None})


@pytest.mark.parametrize("column", ["answer", "label"])
def test_a_split_without_answers_in_any_usual_column_names_the_columns(tmp_path, column):
    rows = [{"question": f"{i}?", "choices": WORDS, column: None} for i in range(30)]
    with pytest.raises(UserError, match="none of its 30 rows has an answer"):
        load(tmp_path, *rows)


def test_questions_to_answer_need_no_answer_and_are_never_refused_for_one(tmp_path):
    rows = two(choices=[["1", "2", "3"]] * 2, answer=["2", "9"], label=[0, "?"])
    asked, note = load_questions(write(tmp_path, *rows))
    assert [q.example.choices for q in asked] == [("1", "2", "3")] * 2
    assert note.startswith("read train.jsonl: 2 questions with 3 options")


def test_questions_to_answer_may_have_the_columns_of_the_training_rows_or_plain_ones(tmp_path):
    named = {"question": "stem", "choices": "x+y"}
    for row in ({"stem": "Which?", "x": "r", "y": "g"}, {"question": "Which?", "A": "r", "B": "g"}):
        (asked,), _ = load_questions(write(tmp_path, row), named)
        assert (asked.example.question, asked.example.choices) == ("Which?", ("r", "g"))


ROW = {"question": "Which?", "choices": WORDS, "answer": 0}


@pytest.mark.parametrize("column", ["context", "Article", "Passage", "CONTEXT"])
def test_the_passage_is_read_under_its_usual_names(tmp_path, column):
    (example,), (read,) = load(tmp_path, ROW | {column: "It rained."})
    assert (example.passage, example.extra) == ("It rained.", {})
    assert f"passage from {column}" in read
    (example,), _ = load(tmp_path, ROW | {column: "It rained."}, columns=("passage=none",))
    assert (example.passage, example.extra) == ("", {column: "It rained."})


def test_an_empty_text_beside_the_passage_is_no_second_passage(tmp_path):
    (example,), _ = load(tmp_path, ROW | {"context": "", "passage": "It rained."})
    assert example.passage == "It rained."
    with pytest.raises(UserError, match="'passage' and 'context' could both be the passage"):
        load(tmp_path, ROW | {"context": "It snowed.", "passage": "It rained."})


def test_names_of_fields_that_rows_may_lack_ignore_case(tmp_path):
    (example,), _ = load(tmp_path, ROW | {"Group": "g", "ID": 7, "Known": "true"})
    assert (example.group, example.id, example.extra) == ("g", "7", {"known": True})
    # A group that is null is kept apart, whatever its column's name.
    _, other = load(tmp_path, ROW | {"Group": "g"}, ROW | {"Group": None})[0]
    assert (other.group, other.extra) == (None, {"group": None})


def test_two_passages_are_refused_and_another_column_may_be_the_group(tmp_path):
    row = ROW | {"passage": "It rained.", "context": "It snowed.", "topic": "weather"}
    with pytest.raises(UserError, match="'passage' and 'context' could both be the passage"):
        load(tmp_path, row)
    (example,), _ = load(tmp_path, row, columns=("passage=context", "group=topic"))
    assert (example.passage, example.group) == ("It snowed.", "weather")
    assert example.extra == {"passage": "It rained."}


def test_a_passage_that_is_no_text_says_how_to_leave_it_out(tmp_path):
    row = ROW | {"context": ["It rained."]}
    with pytest.raises(UserError, match="'context' must be a text.*passage=none"):
        load(tmp_path, row)
    assert load(tmp_path, row, columns=("passage=none",))[0][0].passage == ""


def test_columns_may_be_named_for_training(tmp_path):
    rows = [{"stem": f"{i}?", "p": "r", "q": "g", "key": "ba"[i % 2]} for i in range(40)]
    file = write(tmp_path, *rows)
    columns = ("question=stem", "choices=p+q", "answer=key")
    splits = load_splits(DataConfig(task="custom", path=str(file), columns=columns), 0)
    assert "question from stem; choices from p+q; answer from key; answers by letter" in splits.read


@pytest.mark.parametrize(
    "choices",
    [
        "['red' 'it\\'s'\n 'blue']",
        """['red' "it's" 'blue']""",
        """{'text': array(['red', "it's",\n 'blue'], dtype=object),
            'label': array(['A', 'B', 'C'], dtype=object)}""",
    ],
)
def test_a_list_as_numpy_shows_it_is_read(tmp_path, choices):
    """So it stands in a table that pandas wrote of a Parquet file."""
    (read,), _ = load(tmp_path, {"question": "Which?", "choices": choices, "answer": "B"})
    assert (read.choices, read.answer) == (("red", "it's", "blue"), 1)


def test_a_choice_may_look_like_an_array(tmp_path):
    choices = repr(["array([1], dtype=object)", "'a' 'b'"])
    (read,), _ = load(tmp_path, {"question": "Which?", "choices": choices, "answer": "B"})
    assert read.choices == ("array([1], dtype=object)", "'a' 'b'")


def test_answers_of_open_questions_that_are_all_lists_in_texts_are_lists(tmp_path):
    lists = [{"question": "0?", "answer": "['a', 'b']"}, {"question": "1?", "answer": '["c"]'}]
    rows, (read,) = load(tmp_path, *lists)
    assert [row.aliases for row in rows] == [("a", "b"), ("c",)]
    assert "answers by list" in read
    rows, (read,) = load(tmp_path, *lists, {"question": "2?", "answer": "d"})
    assert [row.aliases for row in rows] == [("['a', 'b']",), ('["c"]',), ("d",)]
    assert "answers by list" not in read


def test_rows_without_an_answer_say_which_columns_they_have(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, *two(choices=[WORDS, WORDS], key=[0, 1]))
    assert str(caught.value).endswith(
        "train.jsonl: none of its 2 rows has an answer; the first has no answer (its columns are:"
        " question, choices, key); give a file with answers, or name its column with --data.columns"
        " answer=COLUMN, or leave an unlabelled split out if the task allows it"
    )


def test_questions_with_different_right_answers_are_noted(tmp_path):
    rows = two(choices=[WORDS, WORDS], answer=["red", "green"])
    again = {"question": "Which  0?", "choices": WORDS[::-1], "answer": "blue"}
    _, (_, note, _) = load(tmp_path, *rows, again)
    assert note == (
        "custom test: 1 of 2 questions have different right answers in different rows (the first:"
        " 'Which 0?'); no model can be right in all of them"
    )
    _, notes = load(tmp_path, *rows, again | {"answer": "red"})
    assert not any("different right answers" in note for note in notes)
