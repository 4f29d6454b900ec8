"""Time and memory of the gated loss over many scored positions, in chunks and with all logits.

python benchmarks/head_loss.py [--positions 4096] [--vocab 128256] [--width 4096] [--examples 64]

Value and gradient (hidden states and the head's adapter) of CoLS, float32, one device, interleaved;
memory is XLA's own account of temporaries, from shapes, at the size given.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cogcalib_jax.bench.command import interleave, median, paired_ratio
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.inference.chunked_loss import batch_loss
from cogcalib_jax.inference.forward import CHUNK
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.models.lora import Head

RANK = 8
METHODS = {"sft": MethodConfig(name="sft").resolve(), "cols": MethodConfig(name="cols").resolve()}


def make_inputs(args: argparse.Namespace) -> tuple[Batch, jax.Array, Head]:
    rng = np.random.default_rng(0)
    shape = (args.examples, args.positions // args.examples)
    rows = np.arange(args.examples, dtype=np.int32)
    batch = Batch(
        input_ids=np.zeros((args.examples, 1), np.int32),
        lengths=np.ones(args.examples, np.int32),
        positions=np.zeros(shape, np.int32),
        targets=rng.integers(0, args.vocab, shape).astype(np.int32),
        loss_mask=np.ones(shape, np.float32),
        option_ids=np.zeros((args.examples, 0), np.int32),
        option_mask=np.zeros((args.examples, 0), np.float32),
        answer=np.zeros(args.examples, np.int32),
        row=rows,
        weight=np.ones(args.examples, np.float32),
    )
    noise = partial(rng.standard_normal, dtype=np.float32)
    head = Head(
        weight=jnp.asarray(noise((args.vocab, args.width)) * 0.02),
        lora_A=jnp.asarray(noise((RANK, args.width)) * 0.02),
        lora_B=jnp.asarray(noise((args.vocab, RANK)) * 0.02),
        scale=2.0,
        dropout=0.0,
    )
    return batch, jnp.asarray(noise((*shape, args.width))), head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, size in (("positions", 4096), ("vocab", 128256), ("width", 4096), ("examples", 64)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    batch, hidden, head = make_inputs(args)
    labels = np.zeros(args.examples, np.float32)

    def gradient(method: MethodConfig, chunk: int, hidden, adapter, weight):
        def total(hidden, adapter):
            here = head.replace(weight=weight, lora_A=adapter[0], lora_B=adapter[1])
            return batch_loss(
                here,
                hidden,
                batch,
                labels,
                method.build(),
                LossConfig(),
                jnp.float32(11.8),
                jax.random.key(0),
                None,
                chunk=chunk,
            ).loss

        return jax.value_and_grad(total, argnums=(0, 1))(hidden, adapter)

    inputs = (hidden, (head.lora_A, head.lora_B), head.weight)
    compiled = {}
    for name, method in METHODS.items():
        for how, chunk in (("chunks", CHUNK), ("all logits", args.positions)):
            step = jax.jit(partial(gradient, method, chunk)).lower(*inputs).compile()
            compiled[f"{name}, {how}"] = step
            temporaries = step.memory_analysis().temp_size_in_bytes
            print(f"{name}, {how}: temporaries {temporaries / 1e6:,.0f} MB", flush=True)
    for name in METHODS:
        got, wanted = (compiled[f"{name}, {how}"](*inputs) for how in ("chunks", "all logits"))
        worst = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), got, wanted
        )
        print(f"{name}: largest relative difference {max(jax.tree.leaves(worst)):.1e}", flush=True)
    work = {
        name: lambda _, step=step: jax.block_until_ready(step(*inputs))
        for name, step in compiled.items()
    }
    seconds = interleave(work, args.rounds, warmup=0)
    floor = 4 * args.positions * args.vocab * args.width
    for name, times in seconds.items():
        rate = floor / np.median(times) / 1e9
        print(f"{name}: {median(times).value:.2f} s, {rate:.1f} GFLOP/s of the floor's operations")
    for name in METHODS:
        ratio = paired_ratio(seconds[f"{name}, chunks"], seconds[f"{name}, all logits"])
        print(f"{name}: chunks take {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times")
    ratio = paired_ratio(seconds["cols, chunks"], seconds["sft, chunks"])
    print(f"cols takes {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times sft")


if __name__ == "__main__":
    main()
