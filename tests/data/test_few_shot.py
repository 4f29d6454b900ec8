"""Solved questions before every prompt: the same for all rows, and no row of any split."""

import json
from dataclasses import replace

import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Example, question_key
from cogcalib_jax.data.loading import load_shots, load_splits, load_test
from cogcalib_jax.errors import FieldError, UserError
from tests.data.chats import chat_tokenizer

SPLITS = ("style", "train", "calibration", "validation", "test")


def rows(split, n):
    return [
        {
            "id": f"{split}{i}",
            "question": f"{split} {i}?",
            "choices": ["yes", "no"],
            "answer": i % 2,
        }
        for i in range(n)
    ]


def write(folder, **splits):
    folder.mkdir()
    for name, content in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(folder)


@pytest.fixture
def path(tmp_path):
    """60 training rows, each question twice, the second time as a group with another."""
    train = rows("train", 30)
    again = [row | {"id": f"again{i}"} for i, row in enumerate(train)]
    # Rows 0 and 1 belong together, and so do the questions they repeat.
    again[0]["group"] = again[1]["group"] = "pair"
    return write(tmp_path / "data", train=train + again, validation=rows("v", 5), test=rows("t", 9))


def config(path, k, **fields):
    return DataConfig(
        **{"task": "custom", "path": path, "few_shot": k, "calibration_rows": 6, **fields}
    )


@pytest.mark.parametrize("k", [1, 3, 15])
def test_solved_questions_are_in_no_split_nor_repeated_there(path, k):
    splits = load_splits(config(path, k, style_fraction=0.3), 0)
    shown = {question_key(e) for e in splits.shots}
    assert len(splits.shots) == len(shown) == k
    assert all(e.question.startswith("train") for e in splits.shots)
    for _, examples in splits.items():
        assert shown.isdisjoint(map(question_key, examples))
    in_splits = [e.id for _, examples in splits.items() for e in examples]
    assert len(in_splits) == len(set(in_splits)) <= 60 + 5 + 9 - 2 * k
    (note,) = (note for note in splits.notes if "solved questions" in note)
    assert note.startswith(f"train: {k} rows are the solved questions before every prompt")
    assert "that repeat them or share their group" in note


def test_a_group_is_left_out_as_a_whole(path):
    """Whatever the seed: where a row of the pair is shown, all four of its rows are gone."""
    found = False
    for seed in range(12):
        splits = load_splits(config(path, 3, split_seed=seed), 0)
        pair = {"train 0?", "train 1?"}
        if pair & {e.question for e in splits.shots}:
            found = True
            assert pair.isdisjoint(e.question for _, rows in splits.items() for e in rows)
    assert found


def test_they_change_nothing_in_calibration_validation_and_test(path):
    none, three = load_splits(config(path, 0), 0), load_splits(config(path, 3), 0)
    assert none.shots == () and not any("solved" in note for note in none.notes)
    for name in ("calibration", "validation", "test"):
        assert getattr(none, name) == getattr(three, name)


def test_the_split_seed_draws_them_and_more_keep_the_fewer(path):
    two, three = (load_splits(config(path, k), 0).shots for k in (2, 3))
    assert three[-2:] == two
    assert load_splits(config(path, 2, split_seed=1), 0).shots != two


def test_evaluation_alone_shows_the_same(path):
    settings = config(path, 3)
    assert load_shots(settings) == load_splits(settings, 0).shots
    assert load_shots(config(path, 0)) == ()


def test_every_prompt_begins_with_them_and_ends_with_its_own_question(path):
    settings = config(path, 2, max_length=999)
    splits = load_splits(settings, 0)
    solved = "".join(
        f"{e.question}\nA. yes\nB. no\nAnswer: {'AB'[e.answer]}\n\n" for e in splits.shots
    )
    tokenizer = chat_tokenizer(None)
    for name, examples in splits.items():
        encoded, _ = encode_split(name, examples, tokenizer, settings, splits.shots)
        for row in encoded:
            assert row.prompt == f"{solved}{row.example.question}\nA. yes\nB. no\nAnswer:"
            assert row.example not in splits.shots


def test_an_open_answer_is_shown_without_a_second_line_break():
    shots = [Example("s", "Who?", ("Ada",), 0, aliases=("Ada", "A."))]
    row = Example("x", "What?", ("A dog",), 0, aliases=("A dog",))
    split, _ = encode_split("test", [row], chat_tokenizer(None), config("unused", 1), shots)
    assert split[0].prompt == "Question: Who?\nAnswer: Ada\n\nQuestion: What?\nAnswer:"


def test_a_question_that_does_not_fit_with_them_names_the_field(path):
    settings = config(path, 3, max_length=80)
    splits = load_splits(settings, 0)
    with pytest.raises(
        UserError, match=r"with the 3 of data.few_shot, take 1\d\d tokens, more than"
    ):
        encode_split("test", splits.test, chat_tokenizer(None), settings, splits.shots)


def test_a_passage_is_cut_to_make_room_for_them(path):
    settings = config(path, 2, max_length=150)
    splits = load_splits(settings, 0)
    row = Example("x", "Which?", ("yes", "no"), 0, passage="word " * 60)
    split, notes = encode_split("test", [row], chat_tokenizer(None), settings, splits.shots)
    start = "".join(
        f"{e.question}\nA. yes\nB. no\nAnswer: {'AB'[e.answer]}\n\n" for e in splits.shots
    )
    assert split[0].prompt.startswith(start + "word word")
    assert "lost their middle" in notes[0]


def test_as_many_as_the_config_says_must_be_handed_over(path):
    with pytest.raises(ValueError, match="0 solved questions given, data.few_shot is 2"):
        encode_split("test", (), chat_tokenizer(None), config(path, 2))


def test_a_solved_question_with_special_text_is_refused_by_name():
    shots = [Example("bad", "Is <s> a token?", ("yes", "no"), 0)]
    with pytest.raises(
        UserError, match="row bad of train would be shown, but its text holds .*<s>"
    ):
        encode_split("test", (), chat_tokenizer(None), config("unused", 1), shots)


def test_without_a_training_split_there_is_nothing_to_show(tmp_path):
    settings = config(write(tmp_path / "test_only", test=rows("t", 9)), 2)
    assert len(load_test(settings, 0)[0]) == 9
    with pytest.raises(UserError, match="has no train split, from which the 2 solved"):
        load_shots(settings)


def test_a_question_that_is_shown_is_never_asked(tmp_path):
    """One file is a whole test set, so that the questions to show are among them."""
    folder = write(tmp_path / "one", test=rows("t", 9))
    settings = config(f"{folder}/test.jsonl", 2, max_length=999)
    shots, (test, _) = load_shots(settings), load_test(settings, 0)
    with pytest.raises(UserError, match="is itself one of the solved questions of data.few_shot"):
        encode_split("test", test, chat_tokenizer(None), settings, shots)
    settings = replace(settings, on_bad_row="skip")
    encoded, _ = encode_split("test", test, chat_tokenizer(None), settings, shots)
    assert {e.id for e in encoded} == {e.id for e in test} - {e.id for e in shots}


def test_more_than_there_are_questions_is_refused(path):
    with pytest.raises(UserError, match="few_shot = 99, and the training split has 29 different"):
        load_splits(config(path, 99), 0)


def test_the_world_takes_none():
    with pytest.raises(FieldError, match="few_shot: must be 0: task world has no solved questions"):
        DataConfig(few_shot=1)
    with pytest.raises(FieldError, match="few_shot: must be at least 0"):
        DataConfig(task="custom", path="x", few_shot=-1)
