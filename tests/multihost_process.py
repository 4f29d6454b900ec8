"""One of several processes with two devices each; started by `tests/multihost.py`.

python multihost_process.py PLAN --distributed.coordinator HOST:PORT ...

PLAN, a JSON file, says what it does; the assertions are here, where several processes are.
"""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.distributed import (
    DistributedConfig,
    from_main,
    is_main,
    require_agreement,
    start_processes,
)
from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.hf import files as model_files
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.sharding import MeshConfig, fetch, local_part, make_mesh, shard_batch
from cogcalib_jax.training.checkpoint import leaf_checksums


@dataclass(frozen=True)
class Config:
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """as in a run"""


def holds_its_own_rows(mesh_config: MeshConfig, mine: list[int]) -> None:
    mesh = make_mesh(mesh_config)
    part = local_part(mesh, 8)
    assert part.rows.tolist() == mine, part
    whole = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    spread = shard_batch(mesh, whole[:, part.rows], batch_axis=1, part=part)
    np.testing.assert_array_equal(fetch(spread), whole)
    # Where every process passes the whole batch, as evaluation does.
    np.testing.assert_array_equal(fetch(shard_batch(mesh, whole, batch_axis=1)), whole)


def reads_its_own_slices(base: Path) -> None:
    sizes = {}
    whole_read = model_files.Tensor.read

    def counted(self, index=slice(None)):
        part = whole_read(self, index)
        sizes.setdefault(self.name, [0, int(np.prod(self.shape))])[0] += part.size
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files.Tensor, "read", counted)
        decoder = load_decoder(base, mesh=make_mesh(MeshConfig(1, 4, 1)))
    matrices = {name: read for name, read in sizes.items() if "norm" not in name}
    assert matrices and all(2 * read == size for read, size in matrices.values()), matrices
    # What they hold together is the file.
    table = decoder.embed_tokens.weight[...]
    assert not table.is_fully_addressable
    stored = model_files.open_folder(base)["model.embed_tokens.weight"].read()
    np.testing.assert_array_equal(fetch(table), stored)
    assert leaf_checksums(table) == leaf_checksums(jax.numpy.asarray(stored))


def hears_the_main_process() -> None:
    assert from_main(lambda: {"from": jax.process_index(), "text": "ä"}) == {"from": 0, "text": "ä"}

    def refuse() -> None:
        assert is_main()
        raise UserError("folder: in use")

    with pytest.raises(UserError, match="folder: in use"):
        from_main(refuse)
    require_agreement("config", lambda: {"seed": 0})
    with pytest.raises(UserError, match="config of process 1 is not that of process 0"):
        require_agreement("config", jax.process_index)


def check(base: Path) -> None:
    half = range(4 * jax.process_index(), 4 * jax.process_index() + 4)
    holds_its_own_rows(MeshConfig(4, 1, 1), list(half))
    holds_its_own_rows(MeshConfig(1, 2, 2), list(half))
    holds_its_own_rows(MeshConfig(1, 1, 4), list(range(8)))
    reads_its_own_slices(base)
    hears_the_main_process()


def run(program: str, *argv: str) -> None:
    """One command after the other, in processes that have met already."""
    if program == "copy":
        from_main(lambda: shutil.copytree(*argv) and None)
    elif program == "remove":
        from_main(lambda: [os.remove(path) for path in argv] and None)
    else:
        # Standing for what each process is given by its own host.
        options = [option.replace("{process}", str(jax.process_index())) for option in argv]
        # Imported where they are needed: not all processes need them.
        code = run_main(import_module(program).main, options)
        print(f"@@ {program} {code}", flush=True)
        print(f"@@ {program} {code}", file=sys.stderr, flush=True)


def die_before(process: int, update: int) -> None:
    """That process, when it makes the batch of that update."""
    loop = import_module("cogcalib_jax.training.loop")
    batches = loop.micro_batches

    def deadly(trainable, stream, step, *rest):
        if step == update and jax.process_index() == process:
            die()
        return batches(trainable, stream, step, *rest)

    loop.micro_batches = deadly


def signal_after(process: int, update: int, name: str) -> None:
    """That process gets that signal, as its cluster would send it, while it makes that update."""
    log = import_module("cogcalib_jax.training.log").StepLog
    updated = log.updated

    def signalled(self, step, *args):
        if step == update and jax.process_index() == process:
            os.kill(os.getpid(), signal.Signals[name])
        if step >= update:
            time.sleep(0.4)  # JAX's service looks once a second
        updated(self, step, *args)

    log.updated = signalled


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(argv: list[str]) -> None:
    plan = json.loads(Path(argv[0]).read_text())
    distributed = load_config(Config, argv[1:], prog="process", description="").config.distributed
    start_processes(distributed)
    start_processes(distributed)  # once is enough
    if "check" in plan:
        check(Path(plan["check"]))
    if "signal_after" in plan:
        signal_after(*plan["signal_after"])
    if "die_before" in plan:
        die_before(*plan["die_before"])
    for command in plan.get("commands", ()):
        run(*command)
    for meeting in range(plan.get("meetings", 0)):
        if meeting == 3 and jax.process_index() == 1:
            if plan["then"] == "die":
                die()
            raise RuntimeError("only here")
        multihost_utils.process_allgather(np.zeros(1))
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(run_main(main))
