"""Rows of the Hub and of a folder: failures are one line with a fix; every file has one split."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.formats import FORMATS
from cogcalib_jax.data.loading import load_splits, load_test
from cogcalib_jax.data.sources import SPLIT_NAMES, Hub, read_hub, split_files, unread_files
from cogcalib_jax.errors import UserError

HUB = Hub("owner/quiz", "main")


class RemoteProtocolError(Exception):
    """As an HTTP client has it that this project does not import."""


def refused(error):
    """Read rows whose loading raises; return the message."""

    def load(name, config, split):
        assert (name, config, split) == ("owner/quiz", "main", "train")
        raise error

    with pytest.raises(UserError) as caught:
        read_hub(HUB, "train", load)
    message = str(caught.value)
    assert "\n" not in message
    assert "owner/quiz (main) on the Hugging Face Hub" in message
    assert "--data.path FOLDER" in message
    return message


@pytest.mark.parametrize(
    "error",
    [
        RemoteProtocolError("peer closed connection\nwithout sending complete message body"),
        json.JSONDecodeError("Expecting value", "<html>", 0),
    ],
)
def test_a_download_that_breaks_off_says_to_start_again(error):
    assert "the download broke off" in refused(error)
    assert "start again" in refused(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found quiz.py"), "rename it"),
        (ValueError("BuilderConfig 'main' not found. Available configs: ['all']"), "['all']"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'owner/quiz' is a gated"), "gated"),
        (EOFError("Compressed file ended"), "Compressed file ended"),
        (TimeoutError("timed out"), "timed out"),
        (ConnectionError("Couldn't reach the Hub"), "check the network"),
    ],
)
def test_other_failures_are_one_line_with_the_librarys_words(error, words):
    assert words in refused(error)


def test_a_local_folder_with_a_script_is_refused_by_datasets_itself(tmp_path):
    folder = tmp_path / "quiz"
    folder.mkdir()
    (folder / "quiz.py").write_text("raise SystemExit('this must never run')\n")
    with pytest.raises(UserError, match="cannot read split 'train'"):
        read_hub(Hub(str(folder)), "train")


def test_rows_of_the_hub_are_numbered():
    def load(name, config, split):
        return iter([{"question": "a"}, {"question": "b"}])

    stored = read_hub(HUB, "train", load)
    assert [row.where for row in stored.rows] == [f"owner/quiz train row {n}" for n in (1, 2)]
    assert (stored.source, stored.files) == ("owner/quiz train", ())


def rows(n, prefix):
    return [
        {"question": f"{prefix} {i}?", "choices": ["red", "green"], "answer": i % 2}
        for i in range(n)
    ]


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
    elif ".csv" in file.suffixes or ".tsv" in file.suffixes:
        separator = "," if ".csv" in file.suffixes else "\t"
        table = [["question", "A", "B", "answer"]]
        table += [[row["question"], *row["choices"], "AB"[row["answer"]]] for row in content]
        file.write_text("".join(separator.join(row) + "\n" for row in table))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in content))


def load(folder, **fields):
    return load_splits(DataConfig(task="custom", path=str(folder), **fields), seed=0)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", [*SPLIT_NAMES["validation"], "Val", "DEV"])
def test_usual_names_are_the_validation_split(tmp_path, name, suffix):
    write(tmp_path / "train.jsonl", rows(40, "train"))
    write(tmp_path / f"{name}{suffix}", [dict(row, answer=0) for row in rows(6, "held out")])
    write(tmp_path / "test.jsonl", rows(5, "test"))
    if suffix in (".csv", ".tsv"):
        # Answers are written in one way in all files of a task.
        write(tmp_path / f"train{suffix}", rows(40, "train"))
        write(tmp_path / f"test{suffix}", rows(5, "test"))
        (tmp_path / "train.jsonl").unlink()
        (tmp_path / "test.jsonl").unlink()
    splits = load(tmp_path)
    assert {row.question.rsplit(" ", 1)[0] for row in splits.validation} == {"held out"}
    assert {row.question.rsplit(" ", 1)[0] for row in splits.test} == {"test"}
    assert "not read" not in splits.read


def test_usual_names_are_no_splits_of_a_published_task(tmp_path):
    # `dev` of MMLU holds solved questions, beside its validation split.
    write(tmp_path / "dev.jsonl", rows(3, "x"))
    assert split_files(tmp_path, "validation", "all") == []
    assert split_files(tmp_path, "validation", usual_names=True) == [tmp_path / "dev.jsonl"]


@pytest.mark.parametrize(
    ("first", "second", "split"),
    [
        ("val.jsonl", "dev.jsonl", "validation"),
        ("train.csv", "train.jsonl", "train"),
        ("test.jsonl", "test-00000-of-00001.parquet", "test"),
        ("test.json", "test.json.gz", "test"),
    ],
)
def test_two_files_for_one_split_are_refused(tmp_path, first, second, split):
    write(tmp_path / "train.jsonl", rows(40, "train"))
    for name in (first, second):
        write(tmp_path / name, rows(40, split))
    with pytest.raises(UserError, match=f"{split} rows; expected one") as caught:
        load(tmp_path)
    assert first in str(caught.value) and second in str(caught.value)


def test_data_files_that_are_not_read_are_named(tmp_path):
    write(tmp_path / "train.jsonl", rows(40, "train"))
    for name in ("more.jsonl", "notes.csv", "train_2.parquet", "data/extra.json", "old.tsv.gz"):
        write(tmp_path / name, rows(3, "more"))
    for name in ("answers.xlsx", "README.md", ".hidden.jsonl", "plot.png"):
        (tmp_path / name).write_text("x")
    named = "files not read: answers.xlsx, more.jsonl, notes.csv, old.tsv.gz, train_2.parquet,"
    assert f"{named} data/extra.json" in load(tmp_path).read
    assert unread_files(tmp_path, [tmp_path / "train.jsonl"])[0] == "answers.xlsx"


def shards(folder, split, suffix, present, total, start=0):
    for i in present:
        write(folder / f"{split}-{i + start:05d}-of-{total:05d}{suffix}", rows(20, f"{split} {i}"))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".json"])
@pytest.mark.parametrize("split", ["train", "test", "validation"])
@pytest.mark.parametrize("place", ["", "data"])
def test_a_missing_shard_is_refused_by_its_name(tmp_path, split, suffix, place):
    if split != "train":
        write(tmp_path / f"train{suffix}", rows(40, "train"))
    shards(tmp_path / place, split, suffix, (0, 2), 3)
    with pytest.raises(UserError, match=f"{split}-00001-of-00003{suffix} is missing: 2 of 3"):
        load(tmp_path)
    shards(tmp_path / place, split, suffix, (1,), 3)
    assert "missing" not in load(tmp_path).read


def test_the_last_shard_may_be_the_missing_one(tmp_path):
    shards(tmp_path, "train", ".jsonl", (0, 1), 4)
    with pytest.raises(UserError, match="-00002-of-00004.jsonl, train-00003-of-00004.jsonl is"):
        load(tmp_path)


def test_shards_are_read_in_the_order_of_their_numbers_also_from_one(tmp_path):
    shards(tmp_path, "test", ".csv", (0, 1, 2), 3, start=1)
    write(tmp_path / "train.csv", rows(40, "train"))
    test, _ = load_test(DataConfig(task="custom", path=str(tmp_path)), 0)
    assert [row.question.split()[1] for row in test] == ["0"] * 20 + ["1"] * 20 + ["2"] * 20


def test_shards_with_a_hash_and_of_two_sets(tmp_path):
    names = [f"train-0000{i}-of-00002-0123456789abcdef.parquet" for i in range(2)]
    for name in names:
        write(tmp_path / name, rows(20, name))
    assert [file.name for file in split_files(tmp_path, "train")] == names
    (tmp_path / names[0]).unlink()
    with pytest.raises(UserError, match="train-00000-of-00002.parquet is missing"):
        split_files(tmp_path, "train")
    shards(tmp_path, "train", ".parquet", (0,), 3)
    with pytest.raises(UserError, match="belong to different sets of shards"):
        split_files(tmp_path, "train")


def test_a_folder_with_one_file_of_another_name_says_so(tmp_path):
    write(tmp_path / "questions.csv", rows(40, "q"))
    with pytest.raises(UserError, match="found questions.csv. Rename questions.csv, or name the"):
        load(tmp_path)
