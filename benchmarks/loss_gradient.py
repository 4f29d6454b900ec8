"""A training step with the chunked loss as it is, against one that forms chunks' logits again.

    python benchmarks/loss_gradient.py MODEL [--examples 8] [--tokens 30] [--rounds 30]

Every position is scored, with LoRA on q and v and in float32. "slope" is inference/chunked_loss.py,
which forms a chunk's gradient in the forward pass; "again" is a scan of chunks under
`jax.checkpoint` (`losses_at` alone). Single steps of both, interleaved; ratios within rounds. The
control is "slope" against itself.
"""

import argparse
from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from cogcalib_jax.bench.command import interleave, median, paired_ratio
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.hf.weights import load_decoder
from cogcalib_jax.inference.chunked_loss import batch_loss
from cogcalib_jax.inference.forward import CHUNK, losses_at
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.gates import GateInputs
from cogcalib_jax.method.loss import LossSums, gate_values, gated_loss
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training import step as training_step
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.step import make_optimizer

LORA = LoraConfig(target_modules=("q_proj", "v_proj"))


def again(
    head, hidden, batch, labels, method, loss, threshold, gate_key, dropout_key, parts=1
) -> LossSums:
    """The loss of `batch_loss` by automatic differentiation alone."""

    def gate(nll: jax.Array) -> jax.Array:
        inputs = GateInputs(nll, threshold, labels, batch.weight > 0)
        return gate_values(method, inputs, gate_key)

    losses = losses_at(head, hidden, batch, loss, method, dropout_key, parts * CHUNK, gate)
    return gated_loss(losses.nll, losses.cal, method, threshold, labels, batch.weight, gate_key)


def make_batch(examples: int, tokens: int) -> Batch:
    ids = np.random.default_rng(0).integers(10, 40_000, (1, examples, tokens)).astype(np.int32)
    ones = np.ones((1, examples), np.float32)
    return Batch(
        input_ids=ids,
        lengths=np.full((1, examples), tokens, np.int32),
        positions=np.broadcast_to(np.arange(tokens, dtype=np.int32), ids.shape).copy(),
        targets=np.roll(ids, -1, -1),
        loss_mask=np.ones(ids.shape, np.float32),
        option_ids=np.zeros((1, examples, 0), np.int32),
        option_mask=np.zeros((1, examples, 0), np.float32),
        answer=np.zeros((1, examples), np.int32),
        row=np.arange(examples, dtype=np.int32)[None],
        weight=ones,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a Hugging Face folder")
    for name, size in (("examples", 8), ("tokens", 30), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=size)
    args = parser.parse_args()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, lora = split_model(load_decoder(args.model, lora=LORA, mesh=mesh))
    batch = jax.device_put(make_batch(args.examples, args.tokens))
    optimizer = make_optimizer(TrainingConfig(), lambda step: 1e-3)
    shardings = training_step.state_shardings(lora, optimizer, mesh)
    states, work = {}, {}

    def take(name: str, step: jax.stages.Compiled, inputs: tuple, _: int) -> None:
        states[name] = jax.block_until_ready(step(states[name], model.frozen, *inputs)[0])

    for method in ("sft", "cols"):
        numbers = jax.tree.map(jnp.float32, MethodConfig(name=method).resolve().build())
        inputs = (
            batch,
            jnp.zeros(batch.answer.shape),
            jnp.float32(11.0),
            numbers,
            jax.random.key(0),
        )
        for form, function in (("slope", batch_loss), ("again", again), ("control", batch_loss)):
            name = f"{method}, {form}"
            states[name] = training_step.init_state(lora, optimizer, mesh)
            with patch.object(training_step, "batch_loss", function):
                update = training_step.make_train_step(
                    model, optimizer, LossConfig(), dropout=False
                )
                jitted = training_step.jit_train_step(update, shardings, model.frozen, mesh)
                step = jitted.lower(states[name], model.frozen, *inputs).compile()
            temporaries = step.memory_analysis().temp_size_in_bytes
            print(f"{name}: temporaries {temporaries / 1e6:,.0f} MB", flush=True)
            work[name] = partial(take, name, step, inputs)
    seconds = interleave(work, args.rounds, warmup=1)
    for method in ("sft", "cols"):
        slope = seconds[f"{method}, slope"]
        print(f"{method}: {median(1e3 * slope).value:.0f} ms")
        for form in ("again", "control"):
            ratio = paired_ratio(seconds[f"{method}, {form}"], slope)
            print(f"  {form} / slope {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")


if __name__ == "__main__":
    main()
