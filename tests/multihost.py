"""Starts processes of `jax.distributed` on this machine, with a plan of what they do together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import QUICK
from tests.conftest import REPOSITORY
from tests.training.small_trainer import lines

# A busy machine compiles slowly; a process that hangs would do so for ever.
PATIENCE = 900


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(
    folder: Path, cache: Path, plan: dict[str, Any], *options: str, slurm: bool = False
) -> list[subprocess.CompletedProcess]:
    """Run `plan` (see multihost_process.py) as two processes that know of one another, two devices
    each. They are told as the docs say, or as Slurm's srun does."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    file.write_text(json.dumps(plan, default=str))
    port = free_port()
    environment = os.environ | {
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=2",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    script = str(REPOSITORY / "tests" / "multihost_process.py")
    started = []
    for number in range(2):
        place = ("coordinator", f"localhost:{port}"), ("processes", 2), ("process", number)
        found = [str(x) for name, value in place for x in (f"--distributed.{name}", value)]
        if slurm:
            found = ["--distributed.auto", "true"]
            place = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 2}
            place |= {"PROCID": number, "LOCALID": number, "STEP_NUM_NODES": 1}
            environment |= {f"SLURM_{name}": str(value) for name, value in place.items()}
            environment |= {"JAX_COORDINATOR_PORT": str(port)}
        started.append(
            subprocess.Popen(
                [sys.executable, script, str(file), *found, *options],
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


def assert_same_run(ours: Path, theirs: Path, phases: tuple[str, ...]) -> None:
    """Hold the lines of `phases` and the adapter of two run folders equal, to 1e-5."""
    for phase in phases:
        pairs = lines(ours, phase=phase), lines(theirs, phase=phase)
        assert len(pairs[0]) == len(pairs[1]) > 0
        for our, their in zip(*pairs, strict=True):
            assert our.keys() == their.keys()
            numbers = [key for key in our if isinstance(our[key], float)]
            for key in numbers:
                # A gradient went through all layers, and two processes sum it in another order:
                # 1.4e-5 on one kind of CPU, below 1e-5 on another.
                rel = 1e-4 if key == "grad_norm" else 1e-5
                wanted = pytest.approx(their[key], rel=rel, abs=1e-5)
                assert our[key] == wanted, (phase, key)
            assert {k: our[k] for k in our.keys() - numbers} == {
                k: their[k] for k in their.keys() - numbers
            }
    one, two = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (ours, theirs))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, two[name], atol=1e-5, err_msg=name)
