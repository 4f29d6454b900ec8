"""A checkpoint of a named model's shape with random bfloat16 weights, in shards.

    python benchmarks/make_random_checkpoint.py configs/models/qwen2.5-0.5b.json OUT --shards 4 \
        --tokenizer DATA/tokenizers/Qwen2.5-base

For timing and for memory: it loads, trains and exports like the real one and knows nothing. Weights
are normal(0, initializer_range), norms 1, biases 0. One shard is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from cogcalib_jax.errors import UserError, run_main
from cogcalib_jax.files import whole_folder
from cogcalib_jax.hf.files import write_folder
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import from_hf, tensor_names
from cogcalib_jax.models.parameters import abstract_decoder
from cogcalib_jax.sharding import MeshConfig, make_mesh

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def make_checkpoint(shape: Path, out: Path, shards: int, tokenizer: Path | None) -> int:
    """Write `out`, which must be new or empty; returns its bytes of weights."""
    raw = json.loads(shape.read_text(encoding="utf-8"))
    config = from_hf(raw, str(shape))
    shapes = tensor_shapes(config)
    sizes = [BFLOAT16.itemsize * int(np.prod(dims)) for dims in shapes.values()]
    with whole_folder(out) as building:
        text = json.dumps(raw | {"torch_dtype": "bfloat16"}, indent=2) + "\n"
        (building / "config.json").write_text(text, encoding="utf-8")
        write_folder(building, _draw(shapes, config.initializer_range), shard_bytes(sizes, shards))
        if tokenizer is not None:
            for file in tokenizer.iterdir():
                shutil.copyfile(file, building / file.name)
    return sum(sizes)


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order of the decoder's parameters."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    _, abstract = abstract_decoder(config, None, jnp.bfloat16, mesh)
    shapes = {}
    for path, leaf in nnx.to_flat_state(abstract):
        stacked = path[0] == "layers"
        for name in tensor_names(path, config):
            shapes[name] = leaf.get_value().shape[stacked:]
    return shapes


def shard_bytes(sizes: list[int], shards: int) -> int:
    """The smallest limit with which tensors of these sizes, in order, fill at most `shards`."""
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        count, filled = 1, 0
        for size in sizes:
            count, filled = (count, filled + size) if filled + size <= middle else (count + 1, size)
        low, high = (low, middle) if count <= shards else (middle + 1, high)
    return low


def _draw(
    shapes: dict[str, tuple[int, ...]], initializer_range: float
) -> Iterator[tuple[str, np.ndarray]]:
    for name, dims in shapes.items():
        if name.endswith("norm.weight"):
            yield name, np.ones(dims, BFLOAT16)
        elif name.endswith("bias"):
            yield name, np.zeros(dims, BFLOAT16)
        else:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            noise = rng.standard_normal(dims, np.float32)
            noise *= initializer_range
            yield name, noise.astype(BFLOAT16)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("shape", type=Path, help="config.json, such as those in configs/models")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--shards", type=int, default=1, help="most files of weights")
    parser.add_argument("--tokenizer", type=Path, help="folder whose files are copied beside them")
    options = parser.parse_args(argv)
    if options.shards < 1:
        raise UserError(f"--shards {options.shards}: must be at least 1")
    size = make_checkpoint(options.shape, options.out, options.shards, options.tokenizer)
    print(f"{options.out}: {size / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    sys.exit(run_main(main))
