"""Files and folders appear whole or not at all, and a refusal names them."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.files import (
    user_cache,
    whole_file,
    whole_folder,
    with_path_in_errors,
    write_whole,
)
from tests.conftest import REPOSITORY


def test_a_file_appears_whole_with_its_folder(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with whole_file(path) as file:
        file.write("ä\n")
        assert not path.exists()
    assert path.read_bytes() == "ä\n".encode()
    assert os.listdir(path.parent) == ["a.json"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        ValueError("RESOURCE_EXHAUSTED: Failed writing: \"x\" [os_error_code='28']"),
        RuntimeError("Failed to write [OS error 28: ENOSPC No space left on device]"),
    ],
)
def test_a_full_disk_is_an_os_error_with_the_files_name(error, tmp_path, capsys):
    def main(argv):
        with with_path_in_errors(tmp_path / "a.json"):
            raise error

    assert run_main(main, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"error: {tmp_path}/a.json: No space left on device; make room, or choose another"
        " place"
    )


@pytest.mark.parametrize("error", [ValueError("no number"), KeyError("os error 28")])
def test_other_errors_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error)), with_path_in_errors(tmp_path):
        raise error


def test_a_limit_of_the_operating_system_leaves_nothing_half_written(tmp_path):
    """A real one, as a full disk is: the file may not grow beyond 4,096 bytes."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from cogcalib_jax.errors import run_main\n"
        "from cogcalib_jax.files import write_whole\n"
        "from cogcalib_jax.training.storage import Journal\n"
        "def main(argv):\n"
        "    if argv[0] == 'file':\n"
        "        write_whole(Path('a.json'), 'x' * 10_000)\n"
        "    for step in range(200):\n"
        "        Journal(Path('a.jsonl')).write(step=step, loss=0.123456789)\n"
        "sys.exit(run_main(main))"
    )
    for what, left in ("file", []), ("journal", ["a.jsonl"]):
        folder = tmp_path / what
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program, what],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: a.json") and "File too large; allow larger files" in line
        assert os.listdir(folder) == left
    assert (tmp_path / "journal/a.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "~/.cache/cogcalib_jax"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/cogcalib_jax"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "~/Library/Caches/cogcalib_jax"),
        ("win32", {}, "~/AppData/Local/cogcalib_jax"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/cogcalib_jax"),
        ("win32", {"COGCALIB_CACHE": "~/mine"}, "~/mine"),
    ],
)
def test_what_can_be_made_again_lies_in_the_users_cache(platform, variables, folder):
    assert user_cache(variables, platform) == Path(folder).expanduser()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_others_put_there_meanwhile_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="out: cannot be written .Directory not empty.; choose"):  # noqa: SIM117
        with whole_folder(out) as building:
            (building / "a").write_text("ours")
            out.mkdir()
            (out / "notes.txt").write_text("theirs")
    assert names(tmp_path) == ["out"] and names(out) == ["notes.txt"]


def test_an_empty_folder_and_one_to_be_replaced_are_taken(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b"):
        with whole_folder(out, replace=name == "b") as building:
            (building / name).write_text("ours")
        assert names(out) == [name]
    assert names(tmp_path) == ["out"]


def test_a_link_is_not_followed_to_where_it_leads(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="out: is a link"), whole_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out) as building:
        killed = building.with_name(re.sub("-.{8}", "-abcd_123", building.name))
        others = [tmp_path / name for name in (".out-settings", ".output-abcd_123.partial")]
        for folder in (killed, *others):
            folder.mkdir()
            (folder / "a").write_text("half")
        with whole_folder(tmp_path / "out"):
            pass
        assert building.is_dir() and not killed.exists()
    assert names(tmp_path) == sorted(["out", *(folder.name for folder in others)])
