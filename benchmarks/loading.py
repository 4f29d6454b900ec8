"""Time the loading of a checkpoint and measure the most host memory that it takes.

python benchmarks/loading.py --model.path OUT [--simulated-devices 8 --mesh.fsdp 4 ...] [--help]

Every repetition loads in a process of its own, whose memory before and at most while loading is
read from the kernel. The bound is the bytes of this host's own shards, which on CPU devices are
host memory themselves, plus the largest tensor. Files may come from the operating system's cache,
so the seconds of each repetition are shown.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.bench.command import cpu_count
from cogcalib_jax.cli import run_program
from cogcalib_jax.cli.run_folder import require_writable
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import UserError, check, check_counts
from cogcalib_jax.hf.files import DTYPES, model_folder, open_folder, public_name
from cogcalib_jax.hf.weights import load_decoder, stored_dtype
from cogcalib_jax.inference.evaluate import write_json
from cogcalib_jax.machines import MeshConfig
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.settings import to_dict
from cogcalib_jax.sharding import make_mesh

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class LoadBenchConfig:
    """The checkpoint and the devices that it is loaded onto."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """the checkpoint"""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """devices; weights are spread over fsdp and tensor, and copied over data"""
    simulated_devices: int | None = None
    """CPU devices to simulate; unset: the devices of this machine"""
    repeats: int = 3
    """loads, each in a new process"""
    json: str | None = None
    """file for the figures as JSON; unset: the table only"""

    def __post_init__(self) -> None:
        check(self.model.path is not None, "model.path", "must name a checkpoint")
        check_counts(self, "simulated_devices", unset=True)
        check_counts(self, "repeats")


class Load(NamedTuple):
    """One load in one process."""

    seconds: float
    peak_bytes: int
    """most resident host memory while loading, less that before"""
    shard_bytes: int
    """of all arrays on this host's devices"""
    devices: int
    device_kind: str
    dtype: str


def main(argv: list[str]) -> None:
    """Measure what `argv` names, write `--json` and print the table."""
    prog = "benchmarks/loading.py"
    config = load_config(LoadBenchConfig, argv, prog=prog, description=__doc__).config
    if config.json is not None:
        require_writable(Path(config.json), "--json")
    figures = measure(config)
    if config.json is not None:
        write_json(Path(config.json), figures)
    print(as_text(table(figures)))


def measure(config: LoadBenchConfig) -> dict[str, Any]:
    """Return the figures of the JSON file.

    Raises:
        UserError: no /proc, or a checkpoint that `load_decoder` refuses.
    """
    if not STATUS.is_file():
        raise UserError("needs /proc, where Linux keeps a process's peak memory")
    tensors = open_folder(model_folder(config.model.path)).values()
    sizes = [math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize for tensor in tensors]
    loads = [_in_a_new_process(config) for _ in range(config.repeats)]
    last = loads[-1]
    peak = max(load.peak_bytes for load in loads)
    seconds = float(np.median([load.seconds for load in loads]))
    bound = last.shard_bytes + max(sizes)
    return {
        "model": public_name(config.model.path),
        "file_bytes": sum(sizes),
        "shards": len({tensor.file for tensor in tensors}),
        "devices": last.devices,
        "device": last.device_kind,
        "dtype": last.dtype,
        "quantise": config.model.quantise,
        "mesh": to_dict(config.mesh),
        "cpus": cpu_count(),
        "seconds": seconds,
        "seconds_each": [load.seconds for load in loads],
        "gb_per_s": sum(sizes) / 1e9 / seconds,
        "peak_host_bytes": peak,
        "shard_bytes": last.shard_bytes,
        "largest_tensor_bytes": max(sizes),
        "bound_bytes": bound,
        "within_bound": peak <= bound,
    }


def _in_a_new_process(config: LoadBenchConfig) -> Load:
    environment = dict(os.environ)
    if config.simulated_devices is not None:
        flag = f"--xla_force_host_platform_device_count={config.simulated_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        # Spawned, not forked: JAX in the child must begin with this environment.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(_load, config).result()
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _load(config: LoadBenchConfig) -> Load:
    mesh = make_mesh(config.mesh)
    dtype = config.model.jax_dtype(mesh, stored_dtype(config.model.path))
    # The first array on a device takes memory that is not the loader's.
    jax.block_until_ready(jax.device_put(jnp.zeros(()), mesh.devices.flat[-1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    start = time.perf_counter()
    decoder = load_decoder(
        config.model.path, dtype=dtype, mesh=mesh, quantise=config.model.quantise
    )
    leaves = jax.block_until_ready(jax.tree.leaves(nnx.state(decoder)))
    seconds = time.perf_counter() - start
    shards = [shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards]
    return Load(
        seconds,
        _status("VmHWM") - before,
        sum(shards),
        mesh.devices.size,
        mesh.devices.flat[0].device_kind,
        dtype.name,
    )


def _status(name: str) -> int:
    """Return a line of the kernel's account of this process, in bytes."""
    (line,) = [x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table."""

    def mb(name: str) -> str:
        return f"{figures[name] / 1e6:,.0f}"

    shown = [(axis, size) for axis, size in figures["mesh"].items() if size != -1]
    mesh = " x ".join(f"{axis} {size}" for axis, size in shown if (axis, size) != ("expert", 1))
    header = ("seconds", "GB/s", "peak host\nMB", "own shards\nMB", "+ largest\ntensor, MB")
    row = (
        f"{figures['seconds']:.2f}",
        f"{figures['gb_per_s']:.2f}",
        mb("peak_host_bytes"),
        mb("shard_bytes"),
        mb("bound_bytes"),
    )
    verdict = "within" if figures["within_bound"] else "ABOVE"
    held = figures["dtype"] if figures["quantise"] == "none" else figures["quantise"]
    times = ", ".join(f"{seconds:.2f}" for seconds in figures["seconds_each"])
    note = "\n".join(
        [
            f"{figures['model']}: {figures['file_bytes'] / 1e9:.2f} GB in {figures['shards']}"
            f" file(s), read as {held} onto {figures['devices']} x"
            f" {figures['device']} ({mesh}); {figures['cpus']} CPU cores.",
            f"Seconds of each load, in order: {times}; the median stands above, with the highest"
            " peak.",
            f"The peak is {verdict} the bound, this host's own shards plus the largest tensor.",
        ]
    )
    return Table(("checkpoint", *header), ((figures["model"], *row),), note)


if __name__ == "__main__":
    sys.exit(run_program(main))
