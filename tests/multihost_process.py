"""One of two processes with two devices each; started by test_multihost.py, asserts for itself.

python multihost_process.py BASE ROWS --distributed.coordinator HOST:PORT ...
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import pytest

from cogcalib_jax.configlib import load_config
from cogcalib_jax.distributed import (
    DistributedConfig,
    from_main,
    is_main,
    require_agreement,
    start_processes,
)
from cogcalib_jax.engine.checkpoint import leaf_checksums
from cogcalib_jax.errors import UserError
from cogcalib_jax.sharding import MeshConfig, fetch, local_part, make_mesh, shard_batch
from cogcalib_jax.weights import safetensors_files
from cogcalib_jax.weights.hf_weights import load_decoder


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
    whole_read = safetensors_files.Tensor.read

    def counted(self, index=slice(None)):
        part = whole_read(self, index)
        sizes.setdefault(self.name, [0, int(np.prod(self.shape))])[0] += part.size
        return part

    safetensors_files.Tensor.read = counted
    decoder = load_decoder(base, mesh=make_mesh(MeshConfig(1, 4, 1)))
    matrices = {name: read for name, read in sizes.items() if "norm" not in name}
    assert matrices and all(2 * read == size for read, size in matrices.values()), matrices
    # What they hold together is the file.
    table = decoder.embed_tokens.weight[...]
    assert not table.is_fully_addressable
    stored = safetensors_files.open_folder(base)["model.embed_tokens.weight"].read()
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


def main(base: str, *argv: str) -> None:
    config = load_config(Config, argv, prog="process", description="").config
    start_processes(config.distributed)
    start_processes(config.distributed)  # once is enough
    half = range(4 * jax.process_index(), 4 * jax.process_index() + 4)
    holds_its_own_rows(MeshConfig(4, 1, 1), list(half))
    holds_its_own_rows(MeshConfig(1, 2, 2), list(half))
    holds_its_own_rows(MeshConfig(1, 1, 4), list(range(8)))
    reads_its_own_slices(Path(base))
    hears_the_main_process()
    print(json.dumps({"process": jax.process_index()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
