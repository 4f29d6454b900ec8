"""A linear layer in Hugging Face orientation, with PEFT's low-rank adapter on it where asked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from cogcalib_jax.models.config import LoraConfig, UncertainLora

if TYPE_CHECKING:
    from cogcalib_jax.models.decoder import Decoder

# Standard deviations of A begin between half of this squared and this squared (BLoB, eps).
FIRST_ROOT = 0.05


class Linear(nnx.Module):
    """y = x W^T + b (+ scale * B A x): weight `[*stack, out, in]`, bias `[*stack, out]`,
    lora_A `[*stack, rank, in]` and lora_B `[*stack, out, rank]`; with UncertainLora also
    lora_A_root, of lora_A's shape.

    `stack` is the leading axis of a pile of layers that a scan takes apart. Weight and bias are
    Params in `dtype`; A and B are LoRAParams in float32 whatever the dtype, and the adapter is
    computed in float32 from inputs cast up, as PEFT does. PEFT's initial values: A uniform in
    +-1/sqrt(in) (Kaiming with a = sqrt 5), B zero. `weight=False` leaves the weight out, for a
    head that shares the embedding.
    """

    def __init__(
        self,
        stack: tuple[int, ...],
        out_features: int,
        in_features: int,
        *,
        bias: bool = False,
        weight: bool = True,
        lora: LoraConfig | None = None,
        initializer_range: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.scale = 0.0 if lora is None else lora.scale
        self.dropout = 0.0 if lora is None else lora.lora_dropout
        # NNX fixes whether an attribute holds data when it is first set: each is set once.
        shape = (*stack, out_features, in_features)
        self.weight = normal_param(shape, initializer_range, dtype, rngs) if weight else None
        self.bias = nnx.Param(jnp.zeros(shape[:-1], dtype)) if bias else None
        self.lora_A = None if lora is None else _lora_a(stack, lora.r, in_features, rngs)
        self.lora_B = None if lora is None else _lora_b(stack, lora.r, out_features)
        uncertain = isinstance(lora, UncertainLora)
        self.lora_A_root = _lora_a_root(self.lora_A.shape, rngs) if uncertain else None

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """x `[..., in]` -> `[..., out]` in x's dtype, for a layer without `stack`.

        dropout_key: None keeps all of A's inputs, and takes A's mean.
        """
        y = jnp.einsum("...i,oi->...o", x, self.weight[...])
        if self.bias is not None:
            y = y + self.bias[...]
        if self.lora_A is not None:
            low = self.lora_input(x, dropout_key)
            update = jnp.einsum("...r,or->...o", low, self.lora_B[...])
            y = (y + self.scale * update).astype(x.dtype)
        return y

    def lora_input(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """A x after dropout, `[..., rank]` float32."""
        root = None if self.lora_A_root is None else self.lora_A_root[...]
        return lora_input(x, self.lora_A[...], root, self.dropout, dropout_key)


def lora_input(
    x: jax.Array,
    lora_A: jax.Array,
    lora_A_root: jax.Array | None,
    dropout: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """A x after dropout: x `[..., in]`, lora_A `[rank, in]` -> `[..., rank]` float32.

    lora_A_root: like lora_A, its standard deviations' roots, or None. dropout_key: None keeps all
    of x, and takes A's mean.
    """
    x = x.astype(jnp.float32)
    if dropout_key is not None and dropout > 0:
        keep = 1 - dropout
        x = jnp.where(jax.random.bernoulli(dropout_key, keep, x.shape), x / keep, 0.0)
    low = jnp.einsum("...i,ri->...r", x, lora_A)
    if dropout_key is not None and lora_A_root is not None:
        low = low + _flipout(x, jnp.square(lora_A_root), dropout_key)
    return low


def _flipout(x: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    """What A's noise adds to A x, `[..., rank]`: one draw of noise, and random signs of inputs and
    outputs that make it another one for every vector of x (Wen et al. 2018; BLoB, section 3.3)."""
    noise_key, in_key, out_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    noise = deviation * jax.random.normal(noise_key, deviation.shape, jnp.float32)
    flipped = x * jax.random.rademacher(in_key, x.shape, jnp.float32)
    low = jnp.einsum("...i,ri->...r", flipped, noise)
    return low * jax.random.rademacher(out_key, low.shape, jnp.float32)


def normal_param(
    shape: tuple[int, ...], initializer_range: float, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Param:
    """A base weight drawn from normal(0, initializer_range), as Hugging Face models begin."""
    noise = jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param((initializer_range * noise).astype(dtype))


def _lora_a(stack: tuple[int, ...], rank: int, in_features: int, rngs: nnx.Rngs) -> nnx.LoRAParam:
    bound = 1 / math.sqrt(in_features)
    shape = (*stack, rank, in_features)
    return nnx.LoRAParam(jax.random.uniform(rngs.lora(), shape, jnp.float32, -bound, bound))


def _lora_b(stack: tuple[int, ...], rank: int, out_features: int) -> nnx.LoRAParam:
    return nnx.LoRAParam(jnp.zeros((*stack, out_features, rank), jnp.float32))


def _lora_a_root(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.LoRAParam:
    low = FIRST_ROOT / math.sqrt(2)
    return nnx.LoRAParam(jax.random.uniform(rngs.lora(), shape, jnp.float32, low, FIRST_ROOT))


def with_dropout(decoder: Decoder, dropout: float) -> Decoder:
    """The same model, sharing its arrays, whose adapters drop that share of their inputs."""
    graphdef, state = nnx.split(decoder)
    changed = nnx.merge(graphdef, state)
    changed.lora = replace(decoder.lora, lora_dropout=dropout)
    for _, module in nnx.iter_modules(changed):
        if isinstance(module, Linear) and module.lora_A is not None:
            module.dropout = dropout
    return changed
