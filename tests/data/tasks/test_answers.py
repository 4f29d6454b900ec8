"""Answers are read in the one way that fits every row of a task, or refused; never row by row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.loading import load_splits, load_test
from cogcalib_jax.data.tasks.fields import Asked, settle_answers
from cogcalib_jax.errors import FieldError, UserError

LETTERS = ("A", "B", "C", "D")
WORDS = ("red", "green", "blue", "grey")
BLOOD = ("B", "AB", "0", "A")


def asked(values, texts=WORDS, labels=LETTERS):
    return [Asked(f"x:{i}", value, texts, labels) for i, value in enumerate(values, start=1)]


def settled(values, texts=WORDS, labels=LETTERS, **said):
    rows = asked(values, texts, labels)
    found = settle_answers(rows, **said)
    return found.reading, [found.position(row.value, row.texts, row.labels) for row in rows]


@pytest.mark.parametrize(
    ("values", "reading", "positions"),
    [
        ([0, 3, 1], "index from 0", [0, 3, 1]),
        (["0", "3"], "index from 0", [0, 3]),
        (["0", "3.0", 1.0], "index from 0", [0, 3, 1]),
        ([1, 2], "index from 0", [1, 2]),
        (["b", "D", "(a)", "C."], "letter", [1, 3, 0, 2]),
        (["red", "Green ", "GREY"], "text", [0, 1, 3]),
        # Rows that no way fits have no say.
        (["red", "purple"], "text", [0, None]),
        ([0, 9, None, [1]], "index from 0", [0, None, None, None]),
        (["red", 4], "text", [0, None]),
    ],
)
def test_the_way_that_fits_every_row_is_taken(values, reading, positions):
    assert settled(values) == (reading, positions)


def test_a_value_of_two_meanings_is_read_as_the_other_rows_are():
    # "B" is a blood group and a letter; "0" no letter, "C" no group.
    assert settled(["B", "0"], BLOOD) == ("text", [0, 2])
    assert settled(["B", "C"], BLOOD) == ("letter", [1, 2])
    numbers = ("4", "3", "2", "1")
    assert settled(["2", "8"], ("2", "4", "6", "8")) == ("text", [0, 3])
    assert settled(["2", "0"], numbers) == ("index from 0", [2, 0])
    assert settled([4, 8], ("2", "4", "6", "8")) == ("text", [1, 3])


@pytest.mark.parametrize(
    ("values", "texts", "options"),
    [
        (["B", "A"], BLOOD, ("--data.answers text", "--data.answers letter")),
        (["2", "3"], ("1", "2", "3", "4"), ("--data.answers text", "--data.answers index")),
        ([2, 1], ("4", "3", "2", "1"), ("--data.answers text", "--data.answers index")),
        (["4", "1"], ("4", "3", "2", "1"), ("--data.answers text", "--data.answers-from 1")),
    ],
)
def test_two_ways_that_differ_are_refused_with_the_options(values, texts, options):
    with pytest.raises(UserError, match="^x:[12]: answer .* both fit every row") as caught:
        settled(values, texts)
    for option in options:
        assert option in str(caught.value)
        field, way = option.split()
        said = {"start": int(way)} if field.endswith("from") else {"way": way}
        assert None not in settled(values, texts, **said)[1]


def test_an_answer_may_write_the_number_of_a_choice_otherwise():
    """Tables with an empty cell hold 2.0 in that column and 2 in another."""
    numbers = ("20.0", "30", "40.50", "red")
    assert settled(["20", 30.0, "40.5"], numbers) == ("text", [0, 1, 2])
    assert settled(["20", "RED"], numbers) == ("text", [0, 3])
    assert settled([1e17], ("3", f"1{'0' * 17}", "1", "2")) == ("text", [1])
    assert settled(["2.00", "2"], ("2", "2.0", "3", "4"), way="text")[1] == [None, 0]
    with pytest.raises(UserError, match=r"'2' may be the text of a choice \('2.0'\) or an index"):
        settled(["2", "1"], ("1.0", "2.0", "3.0", "4.0"))


def test_two_ways_that_agree_everywhere_are_fine():
    assert settled(["A", "B"], ("a", "b", "c", "d"))[1] == [0, 1]
    # From 1, by text and by number: the same.
    assert settled(["1", "4"], ("1", "2", "3", "4"))[1] == [0, 3]
    assert settled(["1", "4"], labels=("1", "2", "3", "4"))[1] == [0, 3]


def test_one_way_in_one_row_and_another_in_the_next_is_refused():
    with pytest.raises(UserError, match=r"^x:3: answer 'B' .* letter.*'red' \(x:1\).* text of a"):
        settled(["red", "blue", "B"])
    assert settled(["red", "blue", "B"], way="text")[1] == [0, 2, None]


@pytest.mark.parametrize("kind", [int, str, float])
def test_indices_that_count_from_one_are_refused_until_it_is_said(kind):
    values = [kind(n) for n in (1, 2, 4, 3, 4)]
    with pytest.raises(UserError, match="^x:3: answers count from 1: none is 0, and 2 are"):
        settled(values)
    assert settled(values, start=1) == ("index from 1", [0, 1, 3, 2, 3])
    with pytest.raises(UserError, match="^x:1: answers count from 1"):
        settled([kind(4), kind(4), "purple"])
    # A zero says that one row is wrong, not that all are.
    assert settled([*values, kind(0)]) == ("index from 0", [1, 2, None, 3, None, 0])


def test_indices_that_may_count_from_one_are_read_from_zero_with_a_note():
    assert "--data.answers-from 1" in settle_answers(asked([1, 2, 3])).note
    assert settle_answers(asked([1, 2, 0])).note == ""
    assert settle_answers(asked([1, 2, 3]), start=0).note == ""


@pytest.mark.parametrize("kind", [int, str, float])
def test_zero_and_one_beside_yes_and_no_are_indices_with_a_note_unless_it_is_said(kind):
    values, texts = [kind(1), kind(0)], ("Yes", "No")
    assert settled(values, texts, LETTERS[:2]) == ("index from 0", [1, 0])
    note = settle_answers(asked(values, texts, LETTERS[:2])).note
    assert "index of 'No'; if 1 means yes or true, give --data.answers boolean" in note
    assert settled(values, texts, LETTERS[:2], way="boolean") == ("boolean", [0, 1])
    # In the other order both mean the same.
    assert settle_answers(asked(values, ("no", "yes"), LETTERS[:2])).note == ""
    assert settled([True, kind(0)], texts, LETTERS[:2]) == ("boolean", [0, 1])


def test_rows_that_count_from_zero_contradict_the_option():
    with pytest.raises(UserError, match="x:1: .*count from 0: leave --data.answers-from out"):
        settled([0, 3], start=1)
    assert settled([0, 4], start=1)[1] == [None, 3]


def test_the_number_of_choices_may_differ():
    rows = [
        Asked("x:1", 2, WORDS[:2], LETTERS[:2]),
        Asked("x:2", 1, WORDS, LETTERS),
    ]
    with pytest.raises(UserError, match="^x:1: answers count from 1"):
        settle_answers(rows)


@given(st.data())
def test_every_way_of_writing_answers_is_read_back(data):
    """Texts that are neither letters nor numbers: only one way can fit."""
    size = data.draw(st.integers(2, 6))
    rights = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=9))
    rights += [0, size - 1]
    texts = tuple(f"choice {'abcdefg'[i]}" for i in range(size))
    labels = tuple("ABCDEF"[:size])
    ways = {
        "index": lambda i: data.draw(st.sampled_from([i, str(i), float(i), f"{i}.0"])),
        "letter": lambda i: data.draw(st.sampled_from([labels[i], labels[i].lower()])),
        "text": lambda i: data.draw(st.sampled_from([texts[i], texts[i].upper(), f" {texts[i]}"])),
    }
    way = data.draw(st.sampled_from(sorted(ways)))
    values = [ways[way](i) for i in rights]
    reading, positions = settled(values, texts, labels)
    assert (reading.split()[0], positions) == (way, rights)
    assert settled(values, texts, labels, way=way)[1] == rights


def test_case_decides_where_two_choices_differ_in_it_alone():
    units = ("5 mW", "5 MW", "5 kW", "5 W")
    assert settled(["5 MW", "5 mW", "5 KW"], units) == ("text", [1, 0, 2])
    assert settled(["5 Mw", "5 W"], units) == ("text", [None, 3])
    assert settled(["e\u0301", "x"], ("\u00e9", "x", "y", "z"))[1] == [0, 1]
    assert settled(["5²", "52"], ("52", "5²", "25", "1")) == ("text", [1, 0])


# Over the files of a task.


def write(file, answers, choices=WORDS):
    rows = [
        {"question": f"{file.stem} {i}?", "choices": choices, "answer": a}
        for i, a in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(path, **fields):
    return DataConfig(task="custom", path=str(path), **fields)


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_answers_from_one_are_never_left_out_as_bad_rows(tmp_path, skip):
    write(tmp_path / "train.jsonl", [1, 2, 3, 4] * 10)
    with pytest.raises(UserError, match="--data.answers-from 1"):
        load_splits(config(tmp_path, on_bad_row=skip), 0)
    splits = load_splits(config(tmp_path, on_bad_row=skip, answers_from=1), 0)
    assert {row.answer for _, part in splits.items() for row in part} == {0, 1, 2, 3}
    assert sum(len(part) for _, part in splits.items()) == 40


def test_the_files_of_a_task_decide_together(tmp_path):
    # The test rows alone could count from 0.
    write(tmp_path / "train.jsonl", [1, 2, 3, 4] * 10)
    write(tmp_path / "test.jsonl", [1, 2, 3])
    for load in (load_splits, load_test):
        with pytest.raises(UserError, match="train.jsonl:4: answers count from 1"):
            load(config(tmp_path), 0)
    test, _ = load_test(config(tmp_path, answers_from=1), 0)
    assert [row.answer for row in test] == [0, 1, 2]
    write(tmp_path / "train.jsonl", [1, 2, 3, 0] * 10)
    test, notes = load_test(config(tmp_path), 0)
    assert [row.answer for row in test] == [1, 2, 3]
    assert "answers by index from 0" in notes[0]


def test_a_test_file_whose_letters_are_groups_is_read_as_the_training_file(tmp_path):
    write(tmp_path / "train.jsonl", ["A", "B", "C", "D"] * 10, BLOOD)
    write(tmp_path / "test.jsonl", ["A", "B"], BLOOD)
    test, _ = load_test(config(tmp_path), 0)
    assert [row.answer for row in test] == [0, 1]
    with pytest.raises(UserError, match="both fit every row"):
        load_test(config(tmp_path / "test.jsonl"), 0)
    test, _ = load_test(config(tmp_path / "test.jsonl", answers="text"), 0)
    assert [row.answer for row in test] == [3, 0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"answers": "text", "answers_from": 1}, "answers_from"),
        ({"task": "openbookqa", "answers": "text"}, "answers"),
        ({"task": "openbookqa", "answers_from": 0}, "answers_from"),
        ({"task": "openbookqa", "columns": ("question=x",)}, "columns"),
        ({"columns": ("query=x",)}, "columns"),
        ({"columns": ("question=",)}, "columns"),
        ({"columns": ("question=x", "question=y")}, "columns"),
    ],
)
def test_options_that_mean_nothing_are_refused(fields, field):
    with pytest.raises(FieldError) as error:
        DataConfig(**({"task": "custom", "path": "x"} | fields))
    assert error.value.field == field


def test_options_for_own_rows_do_not_go_along_to_other_tasks():
    own = config("x", answers="index", answers_from=1, columns=("question=x",))
    other = own.for_task("openbookqa")
    assert (other.answers, other.answers_from, other.columns) == (None, None, None)
