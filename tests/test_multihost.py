"""Two processes of `jax.distributed` on this machine: one run, as if one process had made it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import train
from cogcalib_jax.configlib import FieldError
from cogcalib_jax.distributed import DistributedConfig
from cogcalib_jax.errors import run_main
from tests.conftest import REPOSITORY
from tests.engine.quick import quick_compilation
from tests.runs.small_base import arguments, write_base
from tests.training.small_trainer import lines

# A busy machine compiles slowly; a process that hangs would do so for ever.
PATIENCE = 900


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(
    cache: Path, *command: str, each: tuple[tuple[str, ...], ...] = ((), ()), slurm: bool = False
) -> list[subprocess.CompletedProcess]:
    """Run `python COMMAND` as processes that know of one another, two devices each; `each` has
    what one of them is given beside. They are told as the docs say, or as Slurm's srun does."""
    port = free_port()
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": str(REPOSITORY),
    }
    started = []
    for number, own in enumerate(each):
        place = ("coordinator", f"localhost:{port}"), ("processes", len(each)), ("process", number)
        found = [str(x) for name, value in place for x in (f"--distributed.{name}", value)]
        if slurm:
            found = ["--distributed.auto", "true"]
            place = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": len(each)}
            place |= {"PROCID": number, "LOCALID": number, "STEP_NUM_NODES": 1}
            environment |= {f"SLURM_{name}": str(value) for name, value in place.items()}
            environment |= {"JAX_COORDINATOR_PORT": str(port)}
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *own, *found],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        told = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(started, told, strict=True)
    ]


def command(base, folder, *more):
    return arguments(base, folder, "--method.name", "cols", "--mesh.fsdp", "4", *more)


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("alone") / "run"
    with quick_compilation(cache):
        assert run_main(train.main, command(base, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def pair(base, tmp_path_factory, cache):
    """(run folder, what the two processes said)"""
    folder = tmp_path_factory.mktemp("pair") / "run"
    script = str(REPOSITORY / "train.py")
    done = together(cache, script, *command(base, folder))
    for process in done:
        assert process.returncode == 0, process.stderr[-4000:]
    return folder, done


def test_two_processes_make_the_run_of_one(alone, pair):
    folder, _ = pair
    for phase in ("style", "finetune", "refit", "validation"):
        ours, theirs = lines(folder, phase=phase), lines(alone, phase=phase)
        assert len(ours) == len(theirs) > 0
        for our, their in zip(ours, theirs, strict=True):
            assert our.keys() == their.keys()
            numbers = [key for key in our if isinstance(our[key], float)]
            for key in numbers:
                wanted = pytest.approx(their[key], rel=1e-5, abs=1e-5)
                assert our[key] == wanted, (phase, key)
            assert {k: our[k] for k in our.keys() - numbers} == {
                k: their[k] for k in their.keys() - numbers
            }


def test_the_adapter_is_gathered_whole(alone, pair):
    ours, theirs = (load_file(d / "adapter/adapter_model.safetensors") for d in (pair[0], alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-5, err_msg=name)


def test_there_is_one_run_folder_one_log_and_one_set_of_results(alone, pair):
    folder, _ = pair

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
    main, other = pair[1]
    assert "Report:" in main.stdout and "== Style adaptation" in main.stderr
    assert other.stdout.replace("[Gloo]", "").count("Report") == 0
    assert "==" not in other.stderr and "step" not in other.stderr


def test_two_processes_go_on_from_their_checkpoint(base, pair, cache, tmp_path):
    """The end of training is restored, checked and scored again."""
    first, _ = pair
    folder = tmp_path / "run"
    shutil.copytree(first, folder)
    (folder / "eval.json").unlink()
    shutil.rmtree(folder / "adapter")
    # Checkpoints belong to a config without its folder.
    script = str(REPOSITORY / "train.py")
    done = together(cache, script, *command(base, folder, "--resume"))
    for process in done:
        assert process.returncode == 0, process.stderr[-4000:]
    assert load_file(folder / "adapter/adapter_model.safetensors").keys()
    ours, theirs = (json.loads((d / "eval.json").read_text())["world"] for d in (folder, first))
    assert ours == theirs
    assert lines(folder) == lines(first)


def test_two_processes_evaluate_like_one(alone, pair, cache, tmp_path):
    """On a mesh of its own, whatever the run was trained on."""
    script = str(REPOSITORY / "eval.py")
    options = ["--run", str(alone), "--run-dir", str(tmp_path / "eval"), "--mesh.fsdp", "2"]
    main, other = together(cache, script, *options)
    for process in (main, other):
        assert process.returncode == 0, process.stderr[-4000:]
    ours, theirs = (json.loads((d / "eval.json").read_text()) for d in (tmp_path / "eval", alone))
    assert ours["world"]["nll"] == pytest.approx(theirs["world"]["nll"], abs=1e-5)
    assert "Every answer:" in main.stdout and "Every answer:" not in other.stdout


def test_processes_with_other_options_are_refused_by_all(base, cache, tmp_path):
    script = str(REPOSITORY / "train.py")
    done = together(cache, script, *command(base, tmp_path / "run"), each=((), ("--seed", "3")))
    for process in done:
        assert process.returncode == 2, process.stderr[-4000:]
        assert "config of process 1 is not that of process 0" in process.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_each_process_holds_its_own_rows_and_slices_and_hears_the_main_one(base, cache):
    """The assertions are in the processes themselves."""
    script = str(REPOSITORY / "tests" / "multihost_process.py")
    for number, process in enumerate(together(cache, script, str(base), slurm=True)):
        assert process.returncode == 0, process.stderr[-4000:]
        assert json.dumps({"process": number}) in process.stdout


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"coordinator": "host:1"}, "coordinator"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "coordinator"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "process"),
        ({"coordinator": "host:1", "processes": 2, "process": 0, "auto": True}, "auto"),
    ],
)
def test_half_an_address_is_refused_by_field(given, field):
    with pytest.raises(FieldError, match=field):
        DistributedConfig(**given)
