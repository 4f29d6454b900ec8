"""Commands in files that travel: a shell runs them as they were typed, and they name nobody."""

import os
import shlex
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cogcalib_jax.files import command_line, program_words, without_person

HOME, USER = "/home/ada lovelace", "ada lovelace"


@pytest.fixture(autouse=True, scope="module")
def person():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", HOME)
        patch.setenv("USER", USER)
        yield


WORDS = st.lists(
    st.lists(
        st.sampled_from(
            [HOME, USER, "/", "--model.path=", "x y", "'", '"', "$HOME", "~", "`", "\n"]
        )
    ).map("".join),
    min_size=1,
)


@given(WORDS)
@example([""])
@example([f"{HOME}/models/base", f"--data.path={HOME}"])
def test_the_words_come_back(words):
    line = command_line(*words)
    # What a shell makes of it: it fills the two names in, between double quotes.
    filled = line.replace('"$HOME"', shlex.quote(HOME)).replace('"$USER"', shlex.quote(USER))
    if not any("$HOME" in word for word in words):
        assert shlex.split(filled) == words


def test_a_real_shell_gives_the_words_back_of_a_line_that_names_nobody():
    words = [f"{HOME}/models/base", f"--data.path=/data/{USER}/rows.jsonl", "a'b", "$(touch x)"]
    line = command_line(*words)
    assert USER not in line
    run = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line}"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"path: {HOME}/base", "path: ~/base"),
        (f'path: "{HOME}"', 'path: "~"'),
        (f"/data/{USER}/rows", "/data/…/rows"),
        (f"{HOME}2/base", f"{HOME}2/base"),  # somebody else's
        (f"/mnt{HOME}/base", "/mnt/home/…/base"),
        (f"{USER} wrote this", f"{USER} wrote this"),
    ],
)
def test_a_text_names_no_folder_of_a_person(text, shown):
    assert without_person(text) == shown
    assert command_line("x", "y z") == "x 'y z'"


def test_without_a_home_and_a_user_everything_stays(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("USER")
    assert without_person("/root/base /") == "/root/base /"
    monkeypatch.setenv("HOME", "/")
    assert command_line("cat", "/a/b") == "cat /a/b"


@pytest.mark.parametrize(
    ("started", "words"),
    [
        ("train.py", ["python", "eval.py"]),
        ("/somewhere/bin/pytest", ["python", "eval.py"]),
        ("/env/bin/cogcalib", ["cogcalib", "eval"]),
        ("C:/env/Scripts/cogcalib.exe", ["cogcalib", "eval"]),
        ("/env/lib/cogcalib_jax/__main__.py", ["python", "-m", "cogcalib_jax", "eval"]),
    ],
)
def test_a_program_is_named_as_the_person_started_this_one(started, words):
    assert program_words("eval.py", started) == words
