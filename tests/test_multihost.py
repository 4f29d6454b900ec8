"""Two processes of `jax.distributed` on this machine: one run, as if one process had made it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import train
from cogcalib_jax.errors import FieldError, run_main
from cogcalib_jax.machines import DistributedConfig
from tests.cli.small_base import arguments, write_base
from tests.multihost import assert_same_run, together
from tests.training.small_trainer import lines


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def command(base, folder, *more):
    return arguments(base, folder, "--method.name", "cols", "--mesh.fsdp", "4", *more)


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run_main(train.main, command(base, folder)) == 0
    return folder


@dataclass(frozen=True)
class Pair:
    """What two processes made, one command after the other."""

    folder: Path
    """of a run"""
    resumed: Path
    """of the same run, its end restored"""
    evaluated: Path
    """of an evaluation of the run that one process made"""
    refused: Path
    """of a run that they were given different options for"""
    said: tuple[list[tuple[str, str]], ...]
    """(stdout, stderr) of each command, by process"""


@pytest.fixture(scope="module")
def pair(alone, base, tmp_path_factory, cache):
    place = tmp_path_factory.mktemp("pair")
    folder, resumed, evaluated, refused = (
        place / name for name in ("run", "resumed", "eval", "refused")
    )
    adapter = resumed / "adapter"
    plan = {
        "check": base,
        "commands": [
            ["train", *command(base, folder)],
            ["copy", folder, resumed],
            ["remove", resumed / "eval.json", adapter / "adapter_model.safetensors"],
            ["train", *command(base, resumed, "--resume")],
            # On a mesh of its own, whatever the run was trained on.
            ["eval", "--run", alone, "--run-dir", evaluated, "--mesh.fsdp", "2"],
            ["train", *command(base, refused, "--seed", "{process}")],
        ],
    }
    done = together(place, cache, plan, slurm=True)
    for process in done:
        assert process.returncode == 0, process.stderr[-4000:]
    said = tuple(list(zip(*map(_cut, (p.stdout, p.stderr)), strict=True)) for p in done)
    return Pair(folder, resumed, evaluated, refused, said)


def _cut(text: str) -> list[str]:
    """What was said by each command, with its exit code as the last line."""
    return re.findall(r"(.*?@@ \w+ \d+)$", text, re.DOTALL | re.MULTILINE)


def test_two_processes_make_the_run_of_one(alone, pair):
    """The adapter is gathered whole, too: its tensors are those of one process."""
    assert_same_run(pair.folder, alone, ("style", "finetune", "refit", "validation"))


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_on_a_quantised_base(tmp_path, cache):
    """Each process quantises its own blocks: four along the width, one a device."""
    base = write_base(tmp_path / "base", hidden_size=256)
    options = ("--model.quantise", "nf4", "--training.epochs", "1")
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_main(train.main, command(base, one, *options)) == 0
    plan = {"commands": [["train", *command(base, two, *options)]]}
    for process in together(tmp_path / "pair", cache, plan):
        assert process.returncode == 0, process.stderr[-4000:]
    assert_same_run(two, one, ("style", "finetune", "validation"))


def test_there_is_one_run_folder_one_log_and_one_set_of_results(alone, pair):
    folder = pair.folder

    def files(folder):
        names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        # How Orbax cuts arrays into files is its own affair.
        return {n for n in names if "checkpoints" not in n.parts} | {
            Path(*n.parts[: n.parts.index("checkpoints") + 2])
            for n in names
            if "checkpoints" in n.parts
        }

    assert files(folder) == files(alone)
    ours, theirs = (json.loads((d / "eval.json").read_text())["world"] for d in (folder, alone))
    assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-5)
    # The same config repeats the run on one host.
    assert "coordinator: null" in (folder / "config.yaml").read_text()


def test_only_the_main_process_speaks(pair):
    (main, main_log), (other, other_log) = (said[0] for said in pair.said)
    assert "Report:" in main and "== Style adaptation" in main_log
    assert "Report" not in other
    assert "==" not in other_log and "step" not in other_log


def test_two_processes_go_on_from_their_checkpoint(pair):
    """The end of training is restored, checked and scored again."""
    assert load_file(pair.resumed / "adapter/adapter_model.safetensors").keys()
    ours, theirs = (
        json.loads((d / "eval.json").read_text())["world"] for d in (pair.resumed, pair.folder)
    )
    assert ours == theirs
    assert lines(pair.resumed) == lines(pair.folder)


def test_two_processes_evaluate_like_one(alone, pair):
    ours, theirs = (json.loads((d / "eval.json").read_text()) for d in (pair.evaluated, alone))
    assert ours["world"]["nll"] == pytest.approx(theirs["world"]["nll"], abs=1e-5)
    (main, _), (other, _) = (said[2] for said in pair.said)
    assert "Every answer:" in main and "Every answer:" not in other


def test_processes_with_other_options_are_refused_by_all(pair):
    for said in pair.said:
        *_, message, code = said[3][1].splitlines()
        assert "config of process 1 is not that of process 0" in message
        assert code == "@@ train 2"
    assert not pair.refused.exists()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"coordinator": "host:1"}, "coordinator"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "coordinator"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "process"),
        ({"coordinator": "host:1", "processes": 2, "process": 0, "auto": True}, "auto"),
        ({"heartbeat_seconds": 5}, "heartbeat_seconds"),
    ],
)
def test_half_an_address_is_refused_by_field(given, field):
    with pytest.raises(FieldError, match=field):
        DistributedConfig(**given)
