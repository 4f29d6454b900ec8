"""SIGTERM to one of two processes: both stop after the same update, saved, and go on from there."""

import re

import pytest

from tests.cli.small_base import arguments, write_base
from tests.multihost import together
from tests.reliability.resumed import differences


def command(base, folder, *more):
    options = ("--method.name", "cols", "--mesh.fsdp", "4", "--training.epochs", "4")
    return ["train", *arguments(base, folder, *options, *more)]


@pytest.mark.slow
def test_both_processes_stop_after_one_update_and_go_on_bit_for_bit(tmp_path):
    base, cache = write_base(tmp_path / "base"), tmp_path / "cache"
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    plan = {"commands": [command(base, stopped)], "terminate_after": [1, 4]}
    updates = []
    for process in together(tmp_path / "first", cache, plan):
        assert process.returncode == 0, process.stderr[-4000:]
        assert "@@ train 75" in process.stdout, process.stderr[-4000:]
        told = re.search(r"by SIGTERM: saved after update (\d+) of 12", process.stderr)
        updates.append(int(told[1]))
    assert updates == [8, 8]  # it came during the fifth, and all hear of it within three
    assert (stopped / "checkpoints" / "8-stopped").is_dir()

    plan = {"commands": [command(base, stopped, "--resume"), command(base, whole)]}
    for process in together(tmp_path / "second", cache, plan):
        assert process.returncode == 0, process.stderr[-4000:]
    different = set(differences(stopped, whole))
    named = {"command.txt", "config.yaml", "eval.json", "temperature/eval.json"}
    assert different <= named  # they name the folder
