"""Progress is a bar only where a bar can be drawn."""

import io
import subprocess
import sys
from contextlib import redirect_stderr

import pytest

from cogcalib_jax import console
from cogcalib_jax.console import ProgressLines, progress_bar


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines(total, seconds, **options):
    """What `total` updates of `seconds` each print, and the bar."""
    stream, clock = io.StringIO(), Clock()
    made = ProgressLines(total, "training", "step", clock=clock, **options)
    with redirect_stderr(stream), made as bar:
        for _ in range(total - bar.n):
            clock.now += seconds
            bar.update()
    assert "\r" not in stream.getvalue()
    return stream.getvalue().splitlines(), bar


@pytest.mark.parametrize(
    ("total", "seconds", "told"),
    [
        (100, 0.01, 1),  # over in a second: its end alone
        (100, 1.0, 10),  # every ten seconds, which are ten per cent
        (1000, 1.0, 20),  # every 5 %, which are 50 seconds
        (10, 60.0, 10),  # every update, which is later than both
    ],
)
def test_a_line_comes_after_ten_seconds_or_five_per_cent_whichever_is_later(total, seconds, told):
    printed, _ = lines(total, seconds)
    assert len(printed) == told
    assert f"{total}/{total}" in printed[-1] and "100%" in printed[-1]


def test_a_line_has_title_share_rate_and_what_is_said_beside_it():
    stream, clock = io.StringIO(), Clock()
    made = ProgressLines(40, "training", "step", start=20, clock=clock)
    with redirect_stderr(stream), made as bar:
        bar.set_postfix_str("loss 1.5")
        clock.now = 10.0
        bar.update(10)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("training:  75% 30/40") and line.endswith("loss 1.5]")
    assert "1.00step/s" in line  # what was done before is no work of these seconds


def test_work_inside_other_work_does_not_tell_its_end():
    assert lines(100, 0.01, last_line=False)[0] == []
    assert lines(10, 20.0, last_line=False)[0][-1].split()[2] == "10/10"


def test_lines_do_not_listen_to_variables_for_bars(monkeypatch, caplog):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    lines = ProgressLines(3, "training", "step")
    lines.update(3)
    lines.close()
    assert lines.n == 3
    assert "3/3" in caplog.text


def test_nothing_is_said_of_what_did_not_move():
    assert lines(10, 20.0, start=10)[0] == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_terminal_gets_a_bar_and_a_file_does_not(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(3, "training", "step") as bar:
        bar.update(3)
    assert ("\r" in sys.stderr.getvalue()) == (stream is Terminal)
    assert "training" in sys.stderr.getvalue()


def test_no_module_draws_bars_of_its_own():
    """One place decides where a bar can be drawn."""
    found = subprocess.run(
        ["grep", "-rlE", r"^(from|import) tqdm", console.__file__.rpartition("/")[0]],
        capture_output=True,
        text=True,
    ).stdout.split()
    assert [name for name in found if name.endswith(".py")] == [console.__file__]
