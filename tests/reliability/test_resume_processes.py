"""`python train.py` killed again and again, and resumed: the run that nobody touched."""

import signal

import pytest

from cogcalib_jax.errors import INTERRUPTED, PREEMPTED
from tests.cli.small_base import write_base
from tests.reliability.resumed import command, differences, train

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# Exit code, and how the line before the command begins that goes on.
TOLD = {
    TERM: (PREEMPTED, "stopped by SIGTERM: saved after update"),
    INT: (INTERRUPTED, "interrupted: saved after update"),
}
# All that a resumed run has to be told.
RESUME = ["--resume", "--run-dir", "run"]
# One after the other, on the same run. Checkpoints after 15, 30, 45 and 60 of its 60 updates.
STOPS = (
    (KILL, "cogcalib_jax.training.log.StepLog.updated", 24),
    (TERM, "cogcalib_jax.training.finetune.Trainer.refit", 3),
    (INT, "cogcalib_jax.training.log.StepLog.updated", 2),
    (KILL, "cogcalib_jax.training.checkpoint.write_whole", 2),  # its arrays lie there, no manifest
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


@pytest.mark.slow
def test_stopped_at_any_moment_and_resumed_is_the_run_that_was_not(place):
    words = [*command(write_base(place / "base")), "--method.name", "cols"]
    compiled = place / "compiled"
    done = train(words, place / "whole", compiled)
    assert done.returncode == 0, done.stderr[-4000:]
    for number, stop in enumerate(STOPS):
        done = train(RESUME if number else words, place / "stopped", compiled, stop)
        told = done.stderr[-4000:]
        if stop[0] == KILL:
            assert done.returncode == -KILL, told
        else:
            code, begins = TOLD[stop[0]]
            assert done.returncode == code, told
            line, again = done.stderr.splitlines()[-2:]
            assert line.startswith(begins) and line.endswith("; go on with"), told
            assert again == " ".join(["python train.py", *RESUME])
        assert "\r" not in done.stderr
    done = train(RESUME, place / "stopped", compiled)
    assert done.returncode == 0, done.stderr[-4000:]
    assert differences(place / "whole" / "run", place / "stopped" / "run") == []
    assert not list((place / "stopped").rglob("*.partial"))
