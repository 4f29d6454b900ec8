"""Starts processes of `jax.distributed` on this machine, with a plan of what they do together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

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
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
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
