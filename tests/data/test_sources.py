"""Rows of the Hub: a download that fails, in any way, is one line that says what to do."""

import json

import datasets
import pytest

from cogcalib_jax.data.sources import Hub, read_hub
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
