"""The flows through every LoRA matrix: its inputs, and gradients of option scores at its outputs.

Kronecker-factored curvature is made of both, and their product is a Jacobian. The decoder's scan
over layers hands out neither, so each adapted projection gets two slots, stacked over layers as its
weights are: what is found as a slot's gradient, the scan collects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.inference.forward import row_stats, scored_hidden, tree_scores
from cogcalib_jax.models.config import ATTENTION_PROJECTIONS, LAYER_PROJECTIONS
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import Linear

HEAD = "lm_head"


class Flow(NamedTuple):
    """Through one LoRA matrix `[layers, out, in]`; the head's has one layer, and the scored
    positions as time.

    Gradients times inputs, summed over time, are derivatives with respect to the matrix.
    """

    inputs: jax.Array
    """`[layers, batch, time, in]` float32; 0 at padding and in rows that only fill the batch"""
    gradients: jax.Array
    """`[directions, layers, batch, time, out]` float32, 0 in the same places"""
    positions: jax.Array
    """float32 scalar: real positions in the batch"""


class InputSlot(nnx.Variable):
    """Holds zeros; its gradient is the value that passed it."""


class OutputSlot(nnx.Variable):
    """Holds zeros; its gradient is that of the value that passed it."""


@jax.custom_vjp
def _show_value(x: jax.Array, slot: jax.Array) -> jax.Array:
    return x


def _shown(x: jax.Array, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, x


def _show(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, x.astype(jnp.float32)


_show_value.defvjp(_shown, _show)


class _Tapped(nnx.Module):
    """A stacked projection that shows what comes in, and the gradient of what goes out."""

    def __init__(self, linear: Linear, rows: tuple[int, int]):
        self.linear = linear
        layers, rank, width = linear.lora_A.shape
        self.input_slot = InputSlot(jnp.zeros((layers, *rows, width), jnp.float32))
        outputs = linear.lora_B.shape[1]
        self.output_slot = OutputSlot(jnp.zeros((layers, *rows, outputs), jnp.float32))

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        y = self.linear(_show_value(x, self.input_slot[...]), dropout_key)
        return y + self.output_slot[...].astype(y.dtype)


def adapter_flows(
    decoder: Decoder, batch: Batch, directions: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, dict[str, Flow]]:
    """Run one forward pass, and a backward pass from the option scores for each direction.

    Args:
        decoder: its LoRA's dropout stays off.
        batch: of single-token options, whose scores are logits, or of trees.
        directions: option scores `[batch, options]` -> cotangents `[directions, batch, options]`.

    Returns:
        Hidden states at the scored positions `[batch, n, hidden]`, option scores
        `[batch, options]` (of no meaning where there is no option), and for each LoRA matrix,
        called "q_proj.lora_A", its flow.
    """
    adapted = [name for name in LAYER_PROJECTIONS if name in decoder.lora.modules]
    tapped = nnx.merge(*nnx.split(decoder))
    for name in adapted:
        parent = _parent(tapped, name)
        setattr(parent, name, _Tapped(getattr(parent, name), batch.input_ids.shape))
    graphdef, inputs, outputs, rest = nnx.split(tapped, InputSlot, OutputSlot, ...)

    def forward(inputs: nnx.State, outputs: nnx.State) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, inputs, outputs, rest)
        hidden, _ = scored_hidden(model, batch, None)
        head = model.head()
        if batch.tree is None:
            return head.option_logits(hidden[:, 0], batch.option_ids), hidden
        return tree_scores(row_stats(head, hidden, batch.targets).nll, batch.tree), hidden

    scores, pull, hidden = jax.vjp(forward, inputs, outputs, has_aux=True)
    real = batch.weight[:, None] > 0
    cotangents = jnp.where(real & (batch.option_mask > 0), directions(scores), 0.0)
    # Every direction shows the same inputs.
    inputs, outputs = jax.vmap(pull, out_axes=(None, 0))(cotangents)
    real = real & (jnp.arange(batch.input_ids.shape[1]) < batch.lengths[:, None])

    flows: dict[str, Flow] = {}
    shown = nnx.merge(graphdef, inputs, outputs, rest)
    for name in adapted:
        projection = getattr(_parent(shown, name), name)
        flows |= _flows(
            name,
            projection.linear.lora_A[...],
            projection.linear.lora_B[...],
            projection.input_slot[...],
            projection.linear.scale * projection.output_slot[...],
            real,
        )
    if HEAD in decoder.lora.modules:
        head = decoder.lm_head
        if batch.tree is None:
            rows = jnp.arange(batch.option_ids.shape[0])[:, None]
            outputs = jnp.zeros((*cotangents.shape[:2], decoder.config.vocab_size))
            outputs = outputs.at[:, rows, batch.option_ids].add(cotangents)[:, :, None]
            scored = batch.weight[:, None] > 0
        else:
            outputs, scored = _tree_outputs(decoder, hidden, batch, cotangents)
        flows |= _flows(
            HEAD,
            head.lora_A[...][None],
            head.lora_B[...][None],
            hidden[:, : scored.shape[1]][None].astype(jnp.float32),
            head.scale * outputs[:, None],
            scored,
        )
    return hidden, scores, flows


def _tree_outputs(
    decoder: Decoder, hidden: jax.Array, batch: Batch, cotangents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients at the logits of all scored positions, `[directions, batch, n, vocab]`, and which
    positions are real, `[batch, n]` bool."""
    tree, options = batch.tree, batch.tree.length.shape[-1]
    share = jnp.pad(cotangents / tree.length, ((0, 0), (0, 0), (0, 1)))
    share = jnp.take_along_axis(share, tree.place[None], -1)
    log_p = jax.nn.log_softmax(decoder.head().logits(hidden), -1)
    is_target = jnp.arange(log_p.shape[-1]) == batch.targets[..., None]
    scored = (tree.place < options) & (batch.weight[:, None] > 0)
    return share[..., None] * (is_target - jnp.exp(log_p)), scored


def _parent(decoder: Decoder, name: str) -> nnx.Module:
    return decoder.layers.self_attn if name in ATTENTION_PROJECTIONS else decoder.layers.mlp


def _flows(
    name: str,
    lora_A: jax.Array,
    lora_B: jax.Array,
    inputs: jax.Array,
    gradients: jax.Array,
    real: jax.Array,
) -> dict[str, Flow]:
    """Of both matrices, from A's inputs and the gradients at B's outputs; real `[batch, time]`."""
    real = real[:, :, None]
    inputs, gradients = jnp.where(real, inputs, 0.0), jnp.where(real, gradients, 0.0)
    low = jnp.einsum("lbti,lri->lbtr", inputs, lora_A)
    low_gradients = jnp.einsum("clbto,lor->clbtr", gradients, lora_B)
    positions = jnp.sum(real, dtype=jnp.float32)
    return {
        f"{name}.lora_A": Flow(inputs, low_gradients, positions),
        f"{name}.lora_B": Flow(low, gradients, positions),
    }
