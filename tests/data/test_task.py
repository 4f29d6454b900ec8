"""Tasks in memory are split as rows of a file are; questions need no answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from cogcalib_jax.data.prompts import PROMPTS
from cogcalib_jax.data.task import Examples, Task, load_questions
from cogcalib_jax.errors import UserError
from tests.library import SIZES, rows, task

SPLITS = ("style", "train", "calibration", "validation", "test")


def questions(made: Task) -> dict[str, list[tuple]]:
    return {
        split: [(e.question, e.choices, e.answer) for e in getattr(made, split)] for split in SPLITS
    }


def test_rows_in_memory_are_split_as_rows_of_a_file_are(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    assert questions(task()) == questions(Task.from_path(file, prompt="letters", **SIZES))
    assert questions(task()) == questions(Task.from_rows(file, prompt="letters", **SIZES))


def test_splits_share_no_question_and_the_seed_decides_who_goes_where():
    made, other = task(), task(seed=1)
    asked = [question for split in questions(made).values() for question, *_ in split]
    assert sorted(asked) == sorted(row["question"] for row in rows())
    assert {s: len(getattr(made, s)) for s in SPLITS[2:]} == {
        "calibration": 16, "validation": 8, "test": 12,
    }  # fmt: skip
    assert questions(made) != questions(other)


def test_columns_of_a_table_need_not_be_texts_and_stand_once():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([[f"{i}?", "x", "y", i % 2] for i in range(40)])
    named = {"question": "0", "choices": ["1", "2"], "answer": "3"}
    task = Task.from_rows(table, columns=named)
    assert {row.choices[row.answer] for row in task.train} == {"x", "y"}
    with pytest.raises(UserError, match="train rows: column 'A' occurs twice"):
        Task.from_rows(table.set_axis(["question", "A", "A", "answer"], axis=1))


def test_numbers_of_groups_are_read_beside_an_empty_cell():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(rows()).assign(group=[None, *range(len(rows()) - 1)])
    assert table["group"].dtype == float
    groups = {row.group for row in Task.from_rows(table).train}
    assert "3" in groups or "4" in groups


def test_a_table_of_pandas_and_a_datasets_table_are_rows():
    pandas = pytest.importorskip("pandas")
    import datasets

    table = pandas.DataFrame(rows())
    table["choices"] = table["choices"].map(np.array)  # as Parquet is read
    assert questions(Task.from_rows(table, prompt="letters", **SIZES)) == questions(task())
    table = datasets.Dataset.from_list(list(rows()))
    assert questions(Task.from_rows(table, prompt="letters", **SIZES)) == questions(task())


def test_arrays_within_objects_are_lists():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(rows())
    # As pandas reads the Parquet files of ARC.
    table["choices"] = [{"text": np.array(c), "label": np.array([*"ABCD"])} for c in table.choices]
    table["answer"] = ["ABCD"[i] for i in table.answer]
    assert questions(Task.from_rows(table, prompt="letters", **SIZES)) == questions(task())


def test_a_task_says_how_its_rows_were_read(caplog):
    asked = [{"source": "a book"} | row for row in rows()]
    assert Task.from_rows(asked, test=asked[:2]).notes[0] == (
        "read train rows, test rows: 82 questions with 4 options; answers by index from 0;"
        " columns not used: source"
    )
    caplog.set_level("WARNING", "cogcalib_jax")
    caplog.clear()
    Task.from_rows([row | {"answer": 1 + row["answer"] % 3} for row in rows()])
    (warning,) = caplog.messages
    assert warning.startswith("no answer is 0, so the first choice is never right")


def test_what_a_table_lacks_is_no_value():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(rows()).assign(passage=[None, *["It rained."] * (len(rows()) - 1)])
    table.loc[1, "passage"] = float("nan")
    made = Task.from_rows(table, prompt="letters", **SIZES)
    found = {e.question: e.passage for split in SPLITS for e in getattr(made, split)}
    assert found["Box 0?"] == found["Box 1?"] == "" and found["Box 2?"] == "It rained."


def test_splits_of_ones_own_are_kept():
    made = Task.from_rows(rows()[:60], validation=rows()[60:70], test=rows()[70:])
    assert [e.question for e in made.test] == [row["question"] for row in rows()[70:]]
    assert len(made.validation) == 10


def test_columns_of_other_names_are_named():
    renamed = [{"stem": r["question"], "key": r["answer"], "options": r["choices"]} for r in rows()]
    columns = {"question": "stem", "answer": "key", "choices": "options"}
    assert questions(Task.from_rows(renamed, prompt="letters", columns=columns, **SIZES)) == (
        questions(task())
    )


def test_a_slice_is_asked_in_the_same_way():
    test = task().test
    assert isinstance(test[:3], Examples) and test[:3].prompting is test.prompting
    assert test[0].question == list(test)[0].question


def test_a_prompt_of_ones_own_is_kept_with_the_questions():
    assert task().test.prompting.template is None
    made = Task.from_rows(rows(), prompt=PROMPTS["cloze"], **SIZES)
    assert made.test.prompting.template == PROMPTS["cloze"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"question": "Q?", "choices": ["a"], "answer": 0}] * 3, "train row 1: "),
        ([["Q?", "a"]], "must be a dict of columns, is a list"),
        ([], "there are none; expected at least one"),
        ([{"question": "Q?", "choices": ["a", "b"], "answer": "c"}], "train row 1: answer 'c'"),
    ],
)
def test_rows_that_cannot_be_used_are_named_by_their_place(given, told):
    with pytest.raises(UserError, match=told):
        Task.from_rows(given)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="few_shots"):
        task(few_shots=3)


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task()
    assert not list(Path().iterdir())


ROW = {"question": "Is it?", "choices": ["yes", "no"]}


@pytest.fixture
def load(tmp_path):
    def run(*rows):
        file = tmp_path / "mine.jsonl"
        file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
        return load_questions(file)[0]

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
        (ROW | {"id": "a"}, "its id 'a' is already used at "),
    ],
)
def test_a_bad_row_is_named_by_its_line(load, bad, message):
    with pytest.raises(UserError, match=r"mine\.jsonl:2: ") as caught:
        load(ROW | {"id": "a"}, bad)
    assert message in str(caught.value)


def test_an_empty_file_is_refused(load):
    with pytest.raises(UserError, match="has no rows"):
        load("")
