"""One of two processes is killed, or fails alone: the other ends, says who, and both go on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cogcalib_jax.supervision import LOST_PEER, lost_peer
from tests.cli.small_base import arguments, write_base
from tests.conftest import REPOSITORY
from tests.multihost import together
from tests.training.small_trainer import lines

# As JAX's runtime wrote it, abridged.
PEER_SILENT = b"""\
F1123 16:54:57.293687 9424 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. absl::Status: INTERNAL: Shutdown barrier has failed. Barrier failed because:\
 task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout. This indicates that
*** Check failure stack trace: ***
"""
PEERS_SILENT = b"""\
E1123 16:54:57.294099 9451 coordination_service.cc:1549] Use error polling to propagate the \
following error to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending \
heartbeats):
2, 13
The tasks have crashed. Check the task logs for an earlier error [type.googleapis.com/x='']
"""
COORDINATOR_GONE = b"""\
F1123 16:55:02.587242 9674 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. \
Either the leader task was preempted/died/restarted unexpectedly
"""
HEARTBEAT = ("--distributed.heartbeat-seconds", "10")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def base(place):
    return write_base(place / "base")


def command(base, folder, *more):
    options = ("--method.name", "cols", "--mesh.fsdp", "4", "--checkpoint.every", "2")
    return ["train", *arguments(base, folder, *options, *more)]


def last_line(process):
    return process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_pair_whose_coordinator_was_killed_goes_on_bit_for_bit(base, place):
    killed, whole, cache = place / "killed", place / "whole", place / "cache"
    plan = {"commands": [command(base, killed)], "die_before": [0, 5]}
    coordinator, other = together(place / "first", cache, plan, *HEARTBEAT)
    assert coordinator.returncode == -signal.SIGKILL
    assert other.returncode == LOST_PEER, other.stderr[-4000:]
    assert "process 0 of 2 was lost" in last_line(other) and "--resume" in last_line(other)
    assert not (killed / "eval.json").exists() and any((killed / "checkpoints").glob("[24]"))

    plan = {"commands": [command(base, killed, "--resume"), command(base, whole)]}
    for process in together(place / "second", cache, plan, *HEARTBEAT):
        assert process.returncode == 0, process.stderr[-4000:]
    assert lines(killed) == lines(whole) and lines(killed)
    ours, theirs = (json.loads((run / "eval.json").read_text())["world"] for run in (killed, whole))
    assert ours == theirs
    for file in ("adapter/adapter_model.safetensors", "predictions/world.jsonl"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_killed_process_is_named_within_the_heartbeat(place):
    plan = {"meetings": 2000, "then": "die"}
    main, killed = together(place / "killed-peer", place / "cache", plan, *HEARTBEAT)
    assert killed.returncode == -signal.SIGKILL
    assert main.returncode == LOST_PEER, main.stderr[-4000:]
    assert last_line(main).startswith(
        "error: process 1 of 2 was lost (no heartbeat for 10 s); start all processes again"
    )
    # That one line: neither the runtime's words nor a traceback of the broken collective.
    assert "coordination_service" not in main.stderr and "Traceback" not in main.stderr


def test_a_process_that_fails_alone_ends_the_others(place):
    plan = {"meetings": 2000, "then": "fail"}
    main, failed = together(place / "failing-peer", place / "cache", plan, *HEARTBEAT)
    assert failed.returncode == 1 and last_line(failed) == "RuntimeError: only here"
    # And not by the runtime, after its heartbeat.
    assert main.returncode == LOST_PEER, main.stderr[-4000:]
    assert last_line(main).startswith("error: process 1 of 2 failed (RuntimeError only here)")
    assert "--resume" in last_line(main) and "Traceback" not in main.stderr


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        (PEER_SILENT, ((1,), True)),
        (PEERS_SILENT, ((2, 13), True)),
        (COORDINATOR_GONE, ((0,), False)),
        (
            b"F1123 client.h:80] JAX distributed service detected fatal errors in new words",
            ((), True),
        ),
        (b"Fatal Python error: Aborted", None),
    ],
)
def test_who_is_lost_is_read_from_the_runtimes_words(text, lost):
    assert lost_peer(text) == lost


def watched(program):
    """Start a program that goes on in a child after its first line."""
    text = "import os, signal, sys, time\nfrom cogcalib_jax.supervision import continue_in_child\n"
    text += f"link = continue_in_child(10)\nlink.tell_processes(0, 3)\n{program}\n"
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("print('here'); sys.exit(3)", 3, ""),
        (
            "os.write(2, b'of the runtime\\n'); print('of Python', file=sys.stderr)",
            0,
            "of the runt",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL, ""),
        # Aborted for another reason: what was held back is shown.
        ("os.write(2, b'malloc(): corrupted\\n'); os.abort()", 128 + signal.SIGABRT, "malloc()"),
        (
            f"os.write(2, {PEER_SILENT!r}); os.abort()",
            LOST_PEER,
            "error: process 1 of 3 was lost (no heartbeat for 10 s); start all",
        ),
    ],
)
def test_the_watching_process_ends_as_the_work_does(program, code, said):
    process = watched(program)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert said in err and ("here" in out) == ("here" in program)
    assert "Check failure stack trace" not in err


def test_a_signal_reaches_the_work_once():
    """Also where a cluster sends SIGTERM to every process of a job."""
    process = watched(
        "count = [0]\n"
        "def received(number, frame):\n"
        "    signal.signal(number, signal.SIG_DFL)\n"
        "    count[0] += 1\n"
        "signal.signal(signal.SIGTERM, received)\n"
        "print(os.getpid(), flush=True)\n"
        "for _ in range(30): time.sleep(0.1)\n"
        "sys.exit(10 + count[0])"
    )
    work = int(process.stdout.readline())
    os.kill(work, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 11


def test_the_work_does_not_outlive_what_watches_over_it():
    process = watched("print(os.getpid(), flush=True)\ntime.sleep(600)")
    work = int(process.stdout.readline())
    process.kill()
    process.wait(timeout=60)
    while alive(work):
        time.sleep(0.05)


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False
