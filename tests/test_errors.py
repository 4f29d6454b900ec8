"""How an entry point ends."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cogcalib_jax.errors import FieldError, UserError, plain_text, run_main

REPOSITORY = Path(__file__).resolve().parents[1]


def raising(error):
    def main(argv):
        raise error

    return main


def start(body: str, **options) -> subprocess.Popen:
    """A program whose main is `body`, with its output on a pipe."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    program = (
        "import sys\nfrom cogcalib_jax.errors import run_main\n"
        f"def main(argv):\n{indented}\nsys.exit(run_main(main))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        **options,
    )


def test_returns_what_main_returns_and_zero_for_none():
    assert run_main(lambda argv: None, []) == 0
    assert run_main(lambda argv: 7, []) == 7


def test_passes_the_arguments_without_the_programs_name(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "3"])
    run_main(seen.append)
    run_main(seen.append, ["--given"])
    assert seen == [["--seed", "3"], ["--given"]]


def test_user_error_is_one_line_on_stderr_and_exit_code_2(capsys):
    assert run_main(raising(UserError("a.yaml: rank = 0:\n  must be\tat least 1")), []) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: a.yaml: rank = 0: must be at least 1\n"


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "a\0b", "\u202eevil", "\ud800", "line\u2028line\x85line"]
)
def test_a_message_is_one_printable_line_whatever_it_repeats(text, capsys):
    assert run_main(raising(UserError(f"row {text}: bad; mend it")), []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: row ") and line.endswith(": bad; mend it")
    assert line.isprintable()


def test_what_is_printed_of_data_leaves_the_terminal_as_it_is():
    shown = plain_text("a table\n  1\u00a0000\t\x1b[2J \u202e\u2066 \x9b0m\r\ud800 猫 שלום\n")
    assert shown == "a table\n  1 000 \\x1b[2J \\u202e\\u2066 \\x9b0m \\ud800 猫 שלום\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/a.json"),
            "runs/x/a.json: No space left on device; make room, or choose another place",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            "/root/x: Permission denied; change its permissions, or choose another",
        ),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "a.partial", None, "run/a"),
            "run/a: Is a directory; a folder lies where a file belongs: move it away",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "style/a"),
            "style/a: Not a directory; a file lies where a folder belongs: move it away",
        ),
        (FileExistsError(errno.EEXIST, "File exists", "plots"), "plots: File exists; move it"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; allow more"),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory (Unable to allocate 9 TiB)"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9G\nfirst"), "out of memory on the device (RESOURCE_"),
    ],
)
def test_what_the_machine_refuses_is_one_line_too(error, message, capsys):
    assert run_main(raising(error), []) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "none", "x"), RuntimeError("INTERNAL: x")])
def test_an_error_of_files_or_devices_that_nobody_foresaw_is_a_bug(error):
    with pytest.raises(type(error)):
        run_main(raising(error), [])


def test_field_error_outside_a_config_file_names_its_field(capsys):
    assert run_main(raising(FieldError("rank", "must be at least 1")), []) == 2
    assert capsys.readouterr().err == "error: rank: must be at least 1\n"


def test_interrupt_exits_130_without_a_traceback(capsys):
    assert run_main(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(raising(ZeroDivisionError()), [])


@pytest.mark.parametrize(
    "body",
    [
        "sys.stdin.readline()\nprint('late')",  # noticed only when the buffer is written
        "sys.stdin.readline()\nwhile True: print('line', flush=True)",
    ],
    ids=["buffered", "flushed"],
)
def test_a_reader_that_went_away_ends_the_program_quietly(body):
    with start(body, stdin=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_broken_pipe_that_is_not_the_output_is_a_bug():
    with start("raise BrokenPipeError('worker')") as process:
        assert "BrokenPipeError: worker" in process.stderr.read()
    assert process.returncode == 1
