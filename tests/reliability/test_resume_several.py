"""One of two processes is signalled, killed or fails: both end, and go on bit for bit."""

import re
import signal

import pytest

from cogcalib_jax.errors import INTERRUPTED, PREEMPTED
from tests.cli.small_base import arguments, write_base
from tests.multihost import together
from tests.reliability.resumed import differences

HEARTBEAT = ("--distributed.heartbeat-seconds", "10")
# Files that name the folder of the run.
NAMED = {"command.txt", "config.yaml", "eval.json", "temperature/eval.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def base(place):
    return write_base(place / "base")


def command(base, folder, *more):
    options = ("--method.name", "cols", "--mesh.fsdp", "4", "--training.epochs", "4")
    return ["train", *arguments(base, folder, *options, "--checkpoint.every", "2", *more)]


@pytest.fixture(scope="module")
def whole(base, place):
    """A run that two processes made without interruption."""
    folder = place / "whole"
    for process in together(
        place / "alone", place / "cache", {"commands": [command(base, folder)]}
    ):
        assert process.returncode == 0, process.stderr[-4000:]
    return folder


def assert_resumes(base, place, folder, whole):
    plan = {"commands": [command(base, folder, "--resume")]}
    for process in together(place / f"{folder.name}-again", place / "cache", plan):
        assert process.returncode == 0, process.stderr[-4000:]
    assert set(differences(folder, whole)) <= NAMED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codes", "words"),
    [
        ("SIGTERM", [PREEMPTED, PREEMPTED], "stopped by SIGTERM"),
        ("SIGINT", [PREEMPTED, INTERRUPTED], "interrupted|stopped by SIGTERM"),
    ],
)
def test_both_processes_stop_after_one_update(base, place, whole, name, codes, words):
    folder, updates = place / name, []
    plan = {"commands": [command(base, folder)], "signal_after": [1, 4, name]}
    stopped = together(place / f"{name}-first", place / "cache", plan)
    for code, process in zip(codes, stopped, strict=True):
        assert process.returncode == 0, process.stderr[-4000:]
        assert f"@@ train {code}" in process.stdout, process.stderr[-4000:]
        told = re.search(rf"(?:{words}): saved after update (\d+) of 12", process.stderr)
        updates.append(int(told[1]))
    assert 5 <= updates[0] == updates[1] < 12
    assert (folder / "checkpoints" / f"{updates[0]}-stopped").is_dir()
    assert_resumes(base, place, folder, whole)


@pytest.mark.slow
def test_a_killed_coordinator_ends_the_other_process(base, place, whole):
    folder = place / "killed"
    plan = {"commands": [command(base, folder)], "die_before": [0, 5]}
    coordinator, other = together(place / "killed-first", place / "cache", plan, *HEARTBEAT)
    assert coordinator.returncode == -signal.SIGKILL
    assert other.returncode != 0 and not (folder / "eval.json").exists()
    assert_resumes(base, place, folder, whole)


def test_a_killed_process_ends_the_other_within_the_heartbeat(place):
    plan = {"meetings": 2000, "then": "die"}
    main, killed = together(place / "die", place / "cache", plan, *HEARTBEAT)
    assert killed.returncode == -signal.SIGKILL
    assert main.returncode != 0


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_other(place):
    plan = {"meetings": 2000, "then": "fail"}
    main, failed = together(place / "fail", place / "cache", plan, *HEARTBEAT)
    # JAX aborts it, too, when it has waited a minute for the other to end.
    assert failed.returncode in (1, -signal.SIGABRT) and "RuntimeError: only here" in failed.stderr
    assert main.returncode != 0
