"""Local folders, single files and the Hub: read, refused with the place, or explained."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.loading import groups_of, load_splits, load_test
from cogcalib_jax.data.tasks import TASKS
from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.hf.tokenizer import load_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"


def custom(n, prefix="q"):
    return [
        {"question": f"{prefix} {i}?", "choices": ["red", "green"], "answer": i % 2}
        for i in range(n)
    ]


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(path, **fields):
    return load_splits(DataConfig(**{"task": "custom", "path": str(path), **fields}), seed=0)


def test_arc_rows_with_3_4_and_5_options_and_digit_labels():
    splits = load(FIXTURES / "ai2_arc", task="arc_challenge", calibration_rows=2)
    rows = {row.id: row for _, part in splits.items() for row in part}
    assert len(rows) == 15
    assert {len(row.choices) for row in rows.values()} == {3, 4, 5}
    answers = {i: rows[i].choices[rows[i].answer] for i in ("Made_3", "Made_4", "Made_5", "Made_6")}
    assert answers == {
        "Made_3": "wind",
        "Made_4": "one year",
        "Made_5": "root",
        "Made_6": "boiling",
    }
    assert [row.id for row in splits.test] == ["Made_13", "Made_14", "Made_15"]
    assert [row.id for row in splits.validation] == ["Made_11", "Made_12"]


def test_where_the_test_split_is_unlabelled_validation_is_the_test_set():
    splits = load(FIXTURES / "commonsense_qa", task="commonsense_qa", calibration_rows=2)
    assert [row.id for row in splits.test] == ["made-0009", "made-0010"]
    assert len(splits.validation) == 1
    assert all(len(row.choices) == 5 for row in splits.test)
    test, _ = load_test(DataConfig(task="commonsense_qa", path=str(FIXTURES / "commonsense_qa")), 0)
    assert test == splits.test


def test_a_twin_of_a_winogrande_test_sentence_leaves_train(tmp_path):
    def row(sentence):
        return {"sentence": sentence, "option1": "cup", "option2": "box", "answer": "1"}

    twins = [
        row(f"The cup did not fit the box as the _ was too {size}.") for size in ("big", "wee")
    ]
    others = [
        row(f"Story {i}: {chr(97 + i) * 9} likes _ with {chr(97 + i) * 7}.") for i in range(20)
    ]
    write(tmp_path / "winogrande_s.train.jsonl", [twins[0], *others])
    write(tmp_path / "validation.jsonl", twins[1:])
    splits = load(tmp_path, task="winogrande_s")
    assert [row.question[-4:] for row in splits.test] == ["wee."]
    assert "train: 1 of 21 rows left out" in splits.notes[0]


def test_the_world_makes_its_own_splits():
    config = DataConfig()
    splits = load_splits(config, seed=3)
    assert splits == load_splits(config, seed=3) != load_splits(config, seed=4)
    assert load_test(config, seed=3)[0] == splits.test


def test_parquet_and_jsonl_give_the_same_splits(tmp_path):
    rows = [json.loads(line) for line in (FIXTURES / "ai2_arc/train.jsonl").open()]
    folder = tmp_path / "ARC-Easy"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (FIXTURES / f"ai2_arc/{name}.jsonl").open()]
        half = len(rows) // 2
        for i, part in enumerate((rows[:half], rows[half:])):
            file = folder / f"{name}-0000{i}-of-00002.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), file)
    fields = {"task": "arc_easy", "calibration_rows": 2}
    assert load(tmp_path, **fields) == load(FIXTURES / "ai2_arc", **fields)


def test_the_hub_is_read_through_datasets(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        lines = (FIXTURES / f"ai2_arc/{split}.jsonl").open()
        return datasets.Dataset.from_list([json.loads(line) for line in lines])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fields = {"task": "arc_challenge", "calibration_rows": 2}
    assert load_splits(DataConfig(**fields), 0) == load(FIXTURES / "ai2_arc", **fields)
    assert asked[0] == ("allenai/ai2_arc", "ARC-Challenge", "train")


def test_no_network_says_what_to_do():
    # The tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(UserError, match="cannot be reached.*--data.path FOLDER"):
        load_splits(DataConfig(task="openbookqa"), 0)


def test_an_unlabelled_split_says_so(tmp_path):
    for name in ("train", "validation"):
        write(
            tmp_path / f"{name}.jsonl", (FIXTURES / f"ai2_arc/{name}.jsonl").read_text().split("\n")
        )
    lines = (FIXTURES / "commonsense_qa/test.jsonl").read_text()
    write(tmp_path / "test.jsonl", lines.split("\n"))
    for on_bad_row in ("error", "skip"):
        with pytest.raises(UserError, match="none of its 2 rows has an answer"):
            load(tmp_path, task="arc_easy", on_bad_row=on_bad_row)


def test_a_bad_row_is_named_by_file_and_line_or_counted(tmp_path):
    rows = custom(40)
    rows[3] = '{"question": "torn'
    rows[7] = {**rows[7], "answer": "purple"}
    rows[9] = "[1, 2]"
    rows[11] = {**rows[11], "answer": None}
    rows.insert(0, "")
    file = write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(UserError, match=r"mine.jsonl:5: is not JSON.*and 3 more.*on-bad-row skip"):
        load(file)
    splits = load(file, on_bad_row="skip")
    assert sum(len(part) for _, part in splits.items()) == 36
    assert "4 of 40 rows cannot be used" in splits.notes[0]
    assert "mine.jsonl:5" in splits.notes[0]


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    file = write(tmp_path / "mine.jsonl", custom(30))
    file.write_bytes(file.read_bytes() + b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match="mine.jsonl:31: is not UTF-8"):
        load(file)


def test_a_line_separator_inside_a_text_is_no_new_row(tmp_path):
    rows = custom(30)
    rows[2]["question"] = "one\u2028two"
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert sum(len(part) for _, part in load(file).items()) == 30


def test_an_id_that_stands_twice_is_refused(tmp_path):
    rows = [{**row, "id": f"r{i % 29}"} for i, row in enumerate(custom(30))]
    with pytest.raises(UserError, match=":30: its id 'r0' is already used at .*mine.jsonl:1"):
        load(write(tmp_path / "mine.jsonl", rows))


def test_one_custom_file_is_carved_into_all_splits(tmp_path):
    file = write(tmp_path / "mine.jsonl", custom(100))
    sizes = {name: len(part) for name, part in load(file).items()}
    assert sizes == {"style": 5, "train": 45, "calibration": 15, "validation": 15, "test": 20}
    test, _ = load_test(DataConfig(task="custom", path=str(file)), 0)
    assert len(test) == 100


@pytest.mark.parametrize(
    ("names", "from_train"),
    [
        (("train", "validation", "test"), []),
        (("train", "validation"), ["validation"]),
        (("train", "test"), ["validation"]),
        (("train",), ["test", "validation"]),
    ],
)
def test_a_custom_folder_uses_the_splits_it_has(tmp_path, names, from_train):
    for name in names:
        write(tmp_path / f"{name}.jsonl", custom(40, name))
    splits = load(tmp_path)
    carved = [n for n in ("test", "validation") if getattr(splits, n)[0].question.startswith("tra")]
    assert carved == from_train


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "no file for split 'train'.*found nothing"),
        ({"dev.jsonl": custom(3)}, {}, "expected train.jsonl.*found dev.jsonl"),
        ({"train.jsonl": []}, {}, "train: has no rows"),
        (
            {"train.jsonl": custom(2), "validation.jsonl": custom(2)},
            {"task": "boolq"},
            "train.jsonl:1: has no field 'passage'",
        ),
        ({"train.jsonl": custom(3)}, {}, "3 training rows are too few"),
        ({"train.parquet": ["no parquet"]}, {}, "train.parquet: is not a readable Parquet"),
        (
            {"train.jsonl": custom(9), "train.parquet": [""]},
            {},
            "train.jsonl and train.parquet are both train rows",
        ),
    ],
)
def test_an_unsuitable_folder_says_what_is_wrong(tmp_path, files, fields, message):
    for name, rows in files.items():
        write(tmp_path / name, rows)
    with pytest.raises(UserError, match=message):
        load(tmp_path, **fields)


def test_paths_that_are_not_there_or_not_enough(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected .jsonl.*.csv.*.parquet"):
        load(write(tmp_path / "mine.xlsx", ["a,b"]))
    file = write(tmp_path / "mine.jsonl", custom(9))
    with pytest.raises(UserError, match="needs the folder of its official splits"):
        load(file, task="openbookqa")
    write(tmp_path / "train.jsonl", custom(9))
    with pytest.raises(UserError, match="to evaluate on"):
        load_test(DataConfig(task="custom", path=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"task": "nosuch"}, "task"),
        ({"prompt": "nosuch"}, "prompt"),
        ({"task": "custom"}, "path"),
        ({"path": "x"}, "path"),
        ({"calibration_rows": 501}, "calibration_rows"),
        ({"calibration_rows": 1}, "calibration_rows"),
        ({"validation_rows": 0}, "validation_rows"),
        ({"train_rows": 1}, "train_rows"),
        ({"test_rows": 0}, "test_rows"),
        ({"style_fraction": 0.0}, "style_fraction"),
        ({"style_fraction": 1.0}, "style_fraction"),
        ({"max_length": 7}, "max_length"),
        ({"split_seed": -1}, "split_seed"),
    ],
)
def test_a_config_out_of_range_names_the_field(fields, field):
    with pytest.raises(FieldError) as error:
        DataConfig(**fields)
    assert error.value.field == field


def rows_of_fixture(task, split):
    return [
        json.loads(line) for line in (FIXTURES / f"{task}/{split}.jsonl").open(encoding="utf-8")
    ]


def test_mmlu_trains_on_auxiliary_rows_and_tests_on_its_own():
    splits = load(FIXTURES / "mmlu", task="mmlu", calibration_rows=2)
    assert (len(splits.validation), len(splits.test)) == (3, 10)
    assert all(row.extra == {} for row in splits.train + splits.style + splits.calibration)
    # One training row asks a test question in other words' case and order; it is left out.
    assert (
        "train: 1 of 12 rows left out, since they repeat a question of the test split or share"
        " its group"
    ) in splits.notes
    assert len(splits.train + splits.style + splits.calibration) == 11


def test_a_group_of_mmlu_is_read_from_the_test_split_alone(tmp_path):
    write(tmp_path / "test.jsonl", rows_of_fixture("mmlu", "test"))
    config = DataConfig(task="mmlu", path=str(tmp_path))
    subjects = {
        group: [row.extra["subject"] for row in load_test(config, 0, group)[0]]
        for group in ("business", "marketing", "philosophy", "philosophy_all", "misc")
    }
    assert subjects == {
        "business": ["business_ethics", "management", "marketing"],
        "marketing": ["marketing"],
        "philosophy": ["philosophy"],
        "philosophy_all": ["philosophy", "formal_logic"],
        "misc": ["global_facts"],
    }
    assert len(load_test(config, 0)[0]) == 10
    assert len(load_test(replace(config, test_rows=2), 0, "business")[0]) == 2
    with pytest.raises(UserError, match="no file for split 'auxiliary_train'"):
        load_splits(config, 0)


def test_a_group_without_rows_says_so(tmp_path):
    write(tmp_path / "test.jsonl", rows_of_fixture("mmlu", "test")[:1])
    config = DataConfig(task="mmlu", path=str(tmp_path / "test.jsonl"))
    assert len(load_test(config, 0, "business")[0]) == 1
    with pytest.raises(UserError, match="mmlu:history: none of the test rows belongs to it"):
        load_test(config, 0, "history")


@pytest.mark.parametrize(
    ("task", "group", "message"),
    [
        ("mmlu", "managment", r"did you mean management.*docs/tasks.md lists all 78"),
        ("mmlu", "Business Ethics", "did you mean business_ethics"),
        ("mmlu", "school_us", "did you mean high_school_us_history"),
        ("mmlu", "zzz", "allowed: stem, humanities, .*world_religions"),
        ("mmlu", "", "allowed: stem, humanities"),
        ("openbookqa", "business", "openbookqa has no groups"),
        ("world", "taught", "did you mean taught_fit, taught_form_b"),
    ],
)
def test_an_unknown_group_names_near_ones(task, group, message):
    with pytest.raises(UserError, match=message):
        load_test(DataConfig(task=task), 0, group)


def test_every_group_is_in_the_documentation():
    table = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
    for task in TASKS:
        assert f"`{task}`" in table
        for group in groups_of(task):
            assert f"`{group}`" in table, group


def test_the_world_has_groups_beside_its_test_split():
    config = DataConfig()
    assert groups_of("world") == (
        "taught_form_b",
        "taught_fit",
        "unseen_fit",
        "unseen_template",
        "other_relations",
    )
    with pytest.raises(UserError, match="set world.other_relations"):
        load_test(config, 3, "other_relations")
    taught, notes = load_test(config, 3, "taught_form_b")
    assert notes == ()
    assert len(taught) == 840
    assert not {row.id for row in taught} & {row.id for row in load_test(config, 3)[0]}


@pytest.mark.parametrize("task", ["hotpotqa", "hotpotqa_context", "triviaqa", "nq_open"])
def test_open_tasks_are_split_and_repeats_of_a_test_question_leave_train(task):
    folder = FIXTURES / task.removesuffix("_context")
    splits = load(folder, task=task, calibration_rows=2)
    for _, part in splits.items():
        assert all(row.is_open and row.choices == row.aliases[:1] for row in part)
    assert len(splits.test) == 3
    repeats = 2 if task == "triviaqa" else 1
    assert f"train: {repeats} of 1" in splits.notes[0]
    asked = {"hotpotqa": "what kind of building is  Onder Mill?", "nq_open": "where do storks go"}
    asked["hotpotqa_context"] = asked["hotpotqa"]
    asked["triviaqa"] = "Which sea lies between Denmark and Norway?"
    assert not any(
        row.question.startswith(asked[task])
        for name, part in splits.items()
        for row in part
        if name != "test"
    )


@pytest.mark.parametrize("task", ["hotpotqa", "triviaqa"])
def test_an_open_test_split_without_answers_is_refused_as_a_test_set(task):
    config = DataConfig(task=task, path=str(FIXTURES / task / "test.jsonl"))
    with pytest.raises(UserError, match="2 rows has an answer; the first has no answer"):
        load_test(config, 0)


def test_real_rows_are_read_from_the_hubs_own_layout(tmp_path):
    """Parquet keeps nested fields as other types than JSON does."""
    layout = {
        "mmlu": ("all", ("auxiliary_train", "validation", "test", "dev")),
        "hotpotqa": ("distractor", ("train", "validation")),
        "triviaqa": ("unfiltered.nocontext", ("train", "validation")),
        "nq_open": ("nq_open", ("train", "validation")),
    }
    for task, (name, splits) in layout.items():
        folder = tmp_path / task / name
        folder.mkdir(parents=True)
        for split in splits:
            table = pyarrow.Table.from_pylist(rows_of_fixture(task, split))
            pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        fields = {"task": task, "calibration_rows": 2}
        assert load(tmp_path / task, **fields) == load(FIXTURES / task, **fields)
    with_passages = load(tmp_path / "hotpotqa", task="hotpotqa_context", calibration_rows=2)
    assert with_passages.test[0].passage.startswith("Onder Mill: Onder Mill stands on")


def test_mmlu_rows_whose_right_choice_stands_twice_are_kept_as_published(tmp_path):
    test, notes = load_test(DataConfig(task="mmlu", path=str(FIXTURES / "mmlu")), 0)
    assert notes[0] == "read test.jsonl: 10 questions with 4 options"
    assert notes[1] == (
        "mmlu test: 2 of 10 rows hold the right choice twice; they are used,"
        " and only the choice that the key names is right, as in published numbers"
    )
    assert notes[2].startswith("test: 10 rows, 9 different questions")
    law = [row for row in test if row.extra["subject"] == "international_law"]
    assert [row.choices.count(row.choices[row.answer]) for row in law] == [2, 2]
    assert law[0].id != law[1].id


@pytest.mark.parametrize("task", ["commonsense_qa", "openbookqa", "arc_challenge"])
def test_published_rows_whose_right_choice_stands_twice_are_scored_by_their_key(tmp_path, task):
    stem = "question_stem" if task == "openbookqa" else "question"
    rows = [
        {
            "id": f"{i}",
            stem: f"Where is {i}?",
            "choices": {"text": ["bank", "barn", "bank "], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(9)
    ]
    write(tmp_path / "validation.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    test, notes = load_test(DataConfig(task=task, path=str(tmp_path)), 0)
    assert [row.answer for row in test] == [0, 1, 2] * 3
    assert any("6 of 9 rows hold the right choice twice; they are used" in n for n in notes)
    # In one's own file it is a mistake.
    mine = [{"question": "Where?", "choices": ["bank", "barn", "bank "], "answer": 0}]
    with pytest.raises(UserError, match="two of its choices are equal"):
        load(write(tmp_path / "mine.jsonl", mine))


def open_rows(n):
    return [{"question": f"q {i}?", "answer": [f"a {i}", f"b {i}"]} for i in range(n)]


def test_open_questions_of_ones_own_are_split_like_others(tmp_path):
    splits = load(write(tmp_path / "mine.jsonl", open_rows(40)))
    assert sum(len(part) for _, part in splits.items()) == 40
    assert splits.test[0].aliases[0] == splits.test[0].aliases[1].replace("b", "a")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_file_with_and_without_choices_is_refused_by_its_first_odd_row(tmp_path, on_bad_row):
    file = write(tmp_path / "mine.jsonl", [*custom(3), *open_rows(3)])
    with pytest.raises(
        UserError,
        match=r"mine.jsonl:4: has no choices, but \S+mine.jsonl:1 has choices; give each row",
    ):
        load(file, on_bad_row=on_bad_row)
    file = write(tmp_path / "mine.jsonl", [*open_rows(2), *custom(3)])
    with pytest.raises(UserError, match=r"mine.jsonl:3: has choices, but \S+:1 has no choices"):
        load_test(DataConfig(task="custom", path=str(file), on_bad_row=on_bad_row), 0)


def test_splits_of_both_kinds_are_refused(tmp_path):
    write(tmp_path / "train.jsonl", open_rows(30))
    write(tmp_path / "test.jsonl", custom(5))
    with pytest.raises(
        UserError,
        match="train rows are open questions, test rows have choices; all splits",
    ):
        load(tmp_path)


def test_a_row_with_other_fields_is_named(tmp_path):
    rows = [*custom(3), {"prompt": "q?", "choices": ["red", "green"], "answer": 0}]
    with pytest.raises(
        UserError,
        match=r"mine.jsonl:4: has no column 'question' \(its columns are: prompt, choices",
    ):
        load(write(tmp_path / "mine.jsonl", rows))


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for task in ("custom", "mmlu"):
        with pytest.raises(UserError, match="empty.jsonl: has no rows"):
            load_test(DataConfig(task=task, path=str(tmp_path / "empty.jsonl")), 0)


def test_real_files_have_no_overlap_and_keep_twins_together(realdata):
    for task, folder in [("openbookqa", "openbookqa"), ("winogrande_s", "winogrande")]:
        splits = load(realdata / folder, task=task)
        groups: dict = {}
        for name, part in splits.items():
            for row in part:
                assert groups.setdefault(row.group or row.id, name) == name
    # The file's first two rows are twins.
    small = [row for _, part in splits.items() for row in part]
    twins = [row for row in small if row.question.startswith("Ian volunteered to eat Dennis's")]
    assert len(twins) == 2
    assert twins[0].group == twins[1].group is not None


def test_boolq_with_its_validation_alone_can_be_evaluated_on(realdata):
    config = DataConfig(task="boolq", path=str(realdata / "boolq"), test_rows=50)
    test, notes = load_test(config, 0)
    assert (len(test), notes) == (
        50,
        ("read validation.jsonl as test: 1,500 questions with 2 options",),
    )
    with pytest.raises(UserError, match="no file for split 'train'"):
        load_splits(config, 0)


@pytest.mark.parametrize("task", ["mmlu", "hotpotqa", "hotpotqa_context", "triviaqa", "nq_open"])
@pytest.mark.parametrize("tokenizer", ["Qwen2.5-base", "Mistral-7B-v0.1"])
def test_rows_of_every_new_task_become_token_ids(realdata, task, tokenizer):
    config = DataConfig(
        task=task, path=str(FIXTURES / task.removesuffix("_context")), calibration_rows=2
    )
    tokens = load_tokenizer(realdata / "tokenizers" / tokenizer)
    for name, part in load_splits(config, 0).items():
        encoded, notes = encode_split(name, part, tokens, config)
        assert (len(encoded), notes) == (len(part), ())
        assert encoded.is_open == (task != "mmlu")
        assert encoded.single_token_options == (task == "mmlu")
