"""The loop over layers as it is (a scan over the stacked weights) against one written out.

python benchmarks/layer_loop.py configs/models/qwen2.5-0.5b.json --layers 4 [--tokens 64]

Training steps of CoLS with LoRA on q and v, random weights, float32, one device: seconds to compile
(at the depth of the file too, from shapes alone), XLA's account of temporaries, and times of single
steps, interleaved. Written out, each layer's weights are taken by a constant index.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cogcalib_jax.bench.command import interleave, median, paired_ratio
from cogcalib_jax.bench.compile import BatchShape, abstract_batch, compile_step
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import random_decoder, split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training.step import init_state

LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))
METHOD = MethodConfig(name="cols").resolve()
OPTIMIZER = optax.adamw(1e-4)
LOOPS = ("scan", "written out")


@contextmanager
def loop(name: str) -> Iterator[None]:
    """A step without micro-batches and with one position an answer has no other scan."""
    scan = jax.lax.scan if name == "scan" else partial(jax.lax.scan, unroll=True)
    with patch.object(jax.lax, "scan", scan):
        yield


def compiled(
    config: DecoderConfig, shape: BatchShape, name: str
) -> tuple[jax.stages.Compiled, float]:
    """The step, and the seconds its compilation took."""
    start = time.perf_counter()
    with loop(name):
        step = compile_step(
            config,
            make_mesh(MeshConfig(), jax.devices()[:1]),
            lora=LORA,
            method=METHOD,
            loss=LossConfig(),
            optimizer=OPTIMIZER,
            shape=shape,
            dtype=jnp.float32,
        )
    return step.program, time.perf_counter() - start


def with_layers(config: DecoderConfig, layers: int) -> DecoderConfig:
    windows, ropes = config.sliding_windows[:layers], config.layer_ropes[:layers]
    return replace(config, num_layers=layers, sliding_windows=windows, layer_ropes=ropes)


def random_batch(shape: BatchShape, config: DecoderConfig, mesh: jax.sharding.Mesh) -> Batch:
    rng = np.random.default_rng(0)
    batch, _ = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_batch(shape, mesh))
    ids = rng.integers(3, config.vocab_size, batch.input_ids.shape)
    return batch._replace(
        input_ids=ids.astype(np.int32),
        lengths=np.full_like(batch.lengths, shape.tokens),
        positions=np.full_like(batch.positions, shape.tokens - 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=Path, help="a config.json")
    parser.add_argument("--layers", type=int, help="of the steps that are run")
    for name, size in (("examples", 4), ("tokens", 64), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=size)
    args = parser.parse_args()
    whole = from_hf(json.loads(args.shape.read_text()), str(args.shape))
    config = with_layers(whole, args.layers or whole.num_layers)
    shape = BatchShape(args.examples, args.tokens)
    for depth in sorted({config.num_layers, whole.num_layers}):
        for name in LOOPS:
            step, seconds = compiled(with_layers(whole, depth), shape, name)
            temporaries = step.memory_analysis().temp_size_in_bytes
            print(
                f"{depth} layers, {name}: compiled in {seconds:.1f} s, {temporaries / 1e6:.0f} MB"
            )

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, lora = split_model(random_decoder(config, lora=LORA, mesh=mesh, seed=0))
    batch = jax.device_put(random_batch(shape, config, mesh))
    labels, key = jnp.zeros(batch.answer.shape), jax.random.key(0)
    method = jax.tree.map(jnp.float32, METHOD.build())
    states = {}

    def take(step: jax.stages.Compiled, name: str, _: int) -> None:
        state, _ = step(states[name], model.frozen, batch, labels, jnp.float32(np.inf), method, key)
        states[name] = jax.block_until_ready(state)

    work = {}
    for name in (*LOOPS, "scan again"):
        states[name] = init_state(lora, OPTIMIZER, mesh)
        step, _ = compiled(config, shape, name.removesuffix(" again"))
        work[name] = partial(take, step, name)
    seconds = interleave(work, args.rounds, warmup=2)
    for name, times in seconds.items():
        ms, ratio = median(1e3 * times), paired_ratio(times, seconds["scan"])
        print(
            f"{name}: {ms.value:.0f} ms [{ms.low:.0f}, {ms.high:.0f}],"
            f" {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times scan"
        )


if __name__ == "__main__":
    main()
