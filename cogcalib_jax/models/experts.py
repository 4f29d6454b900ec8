"""A mixture of experts in place of an MLP: a router, and a frozen SwiGLU for each expert.

Each token goes to the experts of its largest router logits, and its output is the weighted sum of
theirs. No expert has a limit of tokens and none is dropped, so a token's output depends on no other
token. A tie of router logits goes to the expert with the lower number.

Left out, since router and experts are frozen: the loss that balances experts
(`router_aux_loss_coef`, `output_router_logits`) and the router's noise (`router_jitter_noise`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import (
    ALL_LINEAR,
    MLP_PROJECTIONS,
    DecoderConfig,
    ExpertsConfig,
    LoraConfig,
)
from cogcalib_jax.models.lora import Linear, normal_param
from cogcalib_jax.models.product import from_bits
from cogcalib_jax.sharding import named_sharding


def require_targets(config: DecoderConfig, lora: LoraConfig | None) -> None:
    """Refuse LoRA on experts; raises UserError."""
    if config.experts is None or lora is None:
        return
    inside = [name for name in (*MLP_PROJECTIONS, ALL_LINEAR) if name in lora.target_modules]
    if inside:
        raise UserError(
            f"lora.target_modules: {', '.join(inside)} would train the experts of a"
            f" {config.model_type} model, which are frozen; expected q_proj, k_proj, v_proj, o_proj"
            " and lm_head. Name those that you want"
        )


class ExpertLinear(nnx.Module):
    """The frozen weights of all experts, `[layers, experts, out, in]`, and biases without `in`."""

    def __init__(
        self,
        config: DecoderConfig,
        out_features: int,
        in_features: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (config.num_layers, config.experts.number, out_features, in_features)
        self.weight = normal_param(shape, config.initializer_range, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(shape[:-1], dtype)) if config.experts.bias else None


class Experts(nnx.Module):
    """The SwiGLUs of all experts."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.experts.width
        self.gate_proj = ExpertLinear(config, inner, width, dtype, rngs)
        self.up_proj = ExpertLinear(config, inner, width, dtype, rngs)
        self.down_proj = ExpertLinear(config, width, inner, dtype, rngs)


class Weights(NamedTuple):
    """One layer's experts, or those on one device."""

    gate: jax.Array
    """`[experts, inner, hidden]`"""
    up: jax.Array
    """like gate"""
    down: jax.Array
    """`[experts, hidden, inner]`"""
    gate_bias: jax.Array | None = None
    """`[experts, inner]`"""
    up_bias: jax.Array | None = None
    """like gate_bias"""
    down_bias: jax.Array | None = None
    """`[experts, hidden]`"""


# The axes by which each of them is cut; what `fsdp` spreads is gathered first.
_INNER = ("experts", "mlp", None)
WEIGHT_AXES = Weights(_INNER, _INNER, ("experts", None, "mlp"), _INNER[:2], _INNER[:2], _INNER[::2])


class Routed(NamedTuple):
    """Tokens and the experts that they go to."""

    x: jax.Array
    """`[batch, time, hidden]`"""
    chosen: jax.Array
    """int32 `[batch, time, per_token]`, numbers of experts"""
    shares: jax.Array
    """float32 like chosen, the weights of their outputs"""


class MixtureOfExperts(nnx.Module):
    """All layers' routers and experts: called with the slice of one layer, as MLP is."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh | None, rngs: nnx.Rngs):
        self.router = Linear(
            (config.num_layers,),
            config.experts.number,
            config.hidden_size,
            bias=config.experts.bias,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        self.experts = Experts(config, dtype, rngs)
        self.config = config.experts
        self.mesh = mesh

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Return `[batch, time, hidden]` in x's dtype; there is no dropout, so `key` is unused."""
        chosen, shares = self._route(x)
        modules = (self.experts.gate_proj, self.experts.up_proj, self.experts.down_proj)
        biases = (None if one.bias is None else one.bias[...] for one in modules)
        weights = Weights(*(one.weight[...] for one in modules), *biases)
        return mixture(self.config, self.mesh)(Routed(x, chosen, shares), weights)

    def _route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        router = self.router
        weight = from_bits(router.weight[...]).astype(x.dtype)
        logits = jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=jnp.float32)
        if router.bias is not None:
            logits = logits + router.bias[...]
        largest, chosen = jax.lax.top_k(logits, self.config.per_token)
        # The largest of softmax over all experts, made to sum to 1, are softmax over them alone.
        over = largest if self.config.renormalise else logits
        return chosen, jnp.exp(largest - jax.nn.logsumexp(over, -1, keepdims=True))


def mixture(config: ExpertsConfig, mesh: Mesh | None) -> Callable[[Routed, Weights], jax.Array]:
    """Return a function of tokens and one layer's experts: outputs `[batch, time, hidden]`.

    It has gradients for x and shares, none for the experts; the backward pass computes the experts
    again. Under `vmap` over tokens all of them go to the experts together: ragged_dot alone knows
    no such rule.
    """

    def run(routed: Routed, weights: Weights) -> jax.Array:
        if mesh is None or mesh.size == 1:
            return on_one_device(routed, weights, config)
        return _on_mesh(routed, weights, config, mesh)

    @custom_vmap
    def forward(routed: Routed, weights: Weights) -> jax.Array:
        return run(routed, weights)

    @custom_vmap
    def backward(
        routed: Routed, gradient: jax.Array, weights: Weights
    ) -> tuple[jax.Array, jax.Array]:
        def of(x: jax.Array, shares: jax.Array) -> jax.Array:
            return run(Routed(x, routed.chosen, shares), weights)

        return jax.vjp(of, routed.x, routed.shares)[1](gradient)

    for function in (forward, backward):
        function.def_vmap(_together(function))

    @jax.custom_vjp
    def apply(routed: Routed, weights: Weights) -> jax.Array:
        return forward(routed, weights)

    def start(routed: Routed, weights: Weights) -> tuple[jax.Array, tuple[Routed, Weights]]:
        return forward(routed, weights), (routed, weights)

    def pull(kept: tuple[Routed, Weights], gradient: jax.Array) -> tuple[Routed, Weights]:
        routed, weights = kept
        x, shares = backward(routed, gradient, weights)
        return Routed(x, None, shares), jax.tree.map(lambda _: None, weights)

    apply.defvjp(start, pull)
    return apply


def _together(function: Callable) -> Callable:
    """Return the rule of `vmap`: its axis joins the batch."""

    def rule(size: int, is_batched: list, *inputs):
        *tokens, weights = inputs
        *batched, shared = is_batched
        if any(jax.tree.leaves(shared)):
            raise NotImplementedError("experts are shared by all examples of a vmap")

        def join(x: jax.Array, has_axis: bool) -> jax.Array:
            x = x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = function(*jax.tree.map(join, tuple(tokens), tuple(batched)), weights)
        out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return rule


def _on_mesh(routed: Routed, weights: Weights, config: ExpertsConfig, mesh: Mesh) -> jax.Array:
    """Run on each device with its tokens and its part of the experts.

    Devices of one `expert` group hold different tokens and different experts: tokens are gathered
    within the group, each device adds what its experts make of them, and each gets the sums of its
    own tokens. `tensor` cuts every expert, `fsdp` spreads weights, which are gathered before.
    """
    tokens = named_sharding(mesh, ("batch", None, None), routed.x.shape).spec
    cut = Weights(
        *(
            None if x is None else named_sharding(mesh, axes, x.shape).spec
            for axes, x in zip(WEIGHT_AXES, weights, strict=True)
        )
    )
    spread = cut.gate[0] is not None and mesh.shape["expert"] > 1
    exchange = spread and tokens[0] is not None
    tensor = cut.gate[1] is not None and mesh.shape["tensor"] > 1

    def local(routed: Routed, weights: Weights) -> jax.Array:
        first = 0
        if spread:
            first = jax.lax.axis_index("expert") * weights.gate.shape[0]
        if exchange:
            routed = jax.tree.map(lambda x: jax.lax.all_gather(x, "expert", tiled=True), routed)
        if tensor and weights.down_bias is not None:
            once = from_bits(weights.down_bias) * (jax.lax.axis_index("tensor") == 0)
            weights = weights._replace(down_bias=once)
        out = on_one_device(routed, weights, config, first)
        if tensor:
            out = jax.lax.psum(out, "tensor")
        if exchange:
            return jax.lax.psum_scatter(out, "expert", scatter_dimension=0, tiled=True)
        return jax.lax.psum(out, "expert") if spread else out

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(Routed(tokens, tokens, tokens), cut),
        out_specs=tokens,
        check_vma=False,
    )(routed, weights)


# Contract the last axes of rows `[pairs, in]` and weights `[experts, out, in]`: weights stay as
# checkpoints have them.
_DIMENSIONS = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])


def on_one_device(
    routed: Routed, weights: Weights, config: ExpertsConfig, first: jax.Array | int = 0
) -> jax.Array:
    """Return what the experts from number `first` on add to each token, `[batch, time, hidden]`.

    Pairs of token and expert are sorted by expert, so that each expert's tokens are neighbours, and
    `ragged_dot` multiplies each group by its own matrix.
    """
    x, (batch, time, width) = routed.x, routed.x.shape
    here = weights.gate.shape[0]
    pairs = (routed.chosen - first).reshape(-1)
    if here < config.number:
        pairs = jnp.where((pairs >= 0) & (pairs < here), pairs, here)  # others come last
    order = jnp.argsort(pairs)
    sizes = jnp.sum(pairs[:, None] == jnp.arange(here), 0, dtype=jnp.int32)
    # Rows behind the last group belong to other devices, and ragged_dot leaves them undefined.
    mine = None if here == config.number else (pairs[order] < here)[:, None]

    def keep(rows: jax.Array) -> jax.Array:
        return rows if mine is None else jnp.where(mine, rows, 0)

    def product(rows: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
        # On a CPU activations are float32 whatever the weights are.
        weight = from_bits(weight).astype(rows.dtype)
        out = jax.lax.ragged_dot_general(rows, weight, sizes, _DIMENSIONS)
        if bias is None:
            return out
        return out + from_bits(bias)[jnp.minimum(pairs[order], here - 1)].astype(out.dtype)

    rows = keep(x.reshape(-1, width)[order // config.per_token])
    gate = product(rows, weights.gate, weights.gate_bias)
    up = product(rows, weights.up, weights.up_bias)
    out = keep(product(swiglu(gate, up, config), weights.down, weights.down_bias))
    out = out[jnp.argsort(order)].reshape(batch, time, config.per_token, width)
    mixed = jnp.einsum("btkd,btk->btd", out, routed.shares, preferred_element_type=jnp.float32)
    return mixed.astype(x.dtype)


def swiglu(gate: jax.Array, up: jax.Array, config: ExpertsConfig) -> jax.Array:
    """Return an expert's inner values from the products of its two matrices."""
    if config.limit is None:
        return jax.nn.silu(gate) * up
    gate = jnp.minimum(gate, config.limit)
    up = jnp.clip(up, -config.limit, config.limit)
    return (up + 1) * gate * jax.nn.sigmoid(config.alpha * gate)
