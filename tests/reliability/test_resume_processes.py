"""`python train.py` killed again and again, and resumed: the run that nobody touched."""

import signal

import pytest

from cogcalib_jax.errors import PREEMPTED
from tests.reliability.resumed import command, differences, train
from tests.runs.small_base import write_base

KILL, TERM = signal.SIGKILL, signal.SIGTERM
# One after the other, on the same run. Checkpoints after 15, 30, 45 and 60 of its 60 updates.
STOPS = (
    (KILL, "cogcalib_jax.training.step_log.StepLog.updated", 24),
    (TERM, "cogcalib_jax.training.finetune.refit", 3),
    (KILL, "cogcalib_jax.engine.manifest.write_whole", 2),  # its arrays lie there, no manifest
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


def test_stopped_at_any_moment_and_resumed_is_the_run_that_was_not(place):
    words = [*command(write_base(place / "base")), "--method.name", "cols"]
    compiled = place / "compiled"
    done = train(words, place / "whole", compiled)
    assert done.returncode == 0, done.stderr[-4000:]
    for number, stop in enumerate(STOPS):
        resume = ["--resume"] if number else []
        done = train([*words, *resume], place / "stopped", compiled, stop)
        told = done.stderr[-4000:]
        if stop[0] == KILL:
            assert done.returncode == -KILL, told
        else:
            assert done.returncode == PREEMPTED, told
            last = done.stderr.splitlines()[-1]
            assert last.startswith("stopped by SIGTERM: saved after update"), told
            assert last.endswith("go on with the same command and --resume --run-dir run")
    done = train([*words, "--resume"], place / "stopped", compiled)
    assert done.returncode == 0, done.stderr[-4000:]
    assert differences(place / "whole" / "run", place / "stopped" / "run") == []
    assert not list((place / "stopped").rglob("*.partial"))
