"""Linear layers and the output head, with low-rank adapters."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx, struct

from cogcalib_jax.models.config import LoraConfig, UncertainLora
from cogcalib_jax.models.product import from_bits, product, to_bits

# First standard deviations of A lie between half of this squared and this squared (BLoB, eps).
FIRST_ROOT = 0.05


class Linear(nnx.Module):
    """y = x W^T + b + scale * B A x, with an adapter B A or without.

    Parameters: weight `[*stack, out, in]` and bias `[*stack, out]` in `dtype`; lora_A `[*stack,
    rank, in]` and lora_B `[*stack, out, rank]` in float32, LoRAParams; with UncertainLora also
    lora_A_root, like lora_A. `stack` is the axis of layers that a scan runs along. The adapter is
    computed in float32, and begins as in PEFT: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5),
    B zero. `weight=False` leaves the weight out, for a head that shares the embedding.
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
        # Each attribute is set once: NNX then fixes whether it holds data.
        shape = (*stack, out_features, in_features)
        self.weight = normal_param(shape, initializer_range, dtype, rngs) if weight else None
        self.bias = nnx.Param(jnp.zeros(shape[:-1], dtype)) if bias else None
        self.lora_A = None if lora is None else _lora_a(stack, lora.r, in_features, rngs)
        self.lora_B = None if lora is None else _lora_b(stack, lora.r, out_features)
        uncertain = isinstance(lora, UncertainLora)
        self.lora_A_root = _lora_a_root(self.lora_A.shape, rngs) if uncertain else None

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return y `[..., out]` of x `[..., in]`, in x's dtype, for a layer without `stack`.

        dropout_key: None: without dropout, and with A's mean.
        """
        y = product(x, self.weight[...])
        if self.bias is not None:
            y = y + self.bias[...]
        if self.lora_A is not None:
            low = self.lora_input(x, dropout_key)
            update = widened(low, self.lora_B[...])
            y = (y + self.scale * update).astype(x.dtype)
        return y

    def lora_input(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Return A x after dropout, `[..., rank]` float32."""
        root = None if self.lora_A_root is None else self.lora_A_root[...]
        return lora_input(x, self.lora_A[...], root, self.dropout, dropout_key)


def lora_input(
    x: jax.Array,
    lora_A: jax.Array,
    lora_A_root: jax.Array | None,
    dropout: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Return A x after dropout, `[..., rank]` float32.

    Args:
        x: `[..., in]`.
        lora_A: `[rank, in]`.
        lora_A_root: like lora_A, roots of its standard deviations; None: none.
        dropout: share of x that is dropped.
        dropout_key: None: without dropout, and with A's mean.
    """
    x = x.astype(jnp.float32)
    if dropout_key is not None and dropout > 0:
        keep = 1 - dropout
        x = jnp.where(jax.random.bernoulli(dropout_key, keep, x.shape), x / keep, 0.0)
    low = narrowed(x, lora_A)
    if dropout_key is not None and lora_A_root is not None:
        low = low + _flipout(x, jnp.square(lora_A_root), dropout_key)
    return low


@jax.custom_vjp
def narrowed(x: jax.Array, lora_A: jax.Array) -> jax.Array:
    """Return A x, `[..., rank]`, of x `[..., in]` and A `[rank, in]`.

    Its gradient, and that of `widened`, is written out so that the narrow side of each product
    comes first: XLA transposes the first side on CPUs, and it would choose the wide one. With it,
    and with the gate of the MLP computed again in the backward pass, a step of SmolLM2-135M with
    adapters on all linear layers takes .90 and .96 of the time (one core, two runs).
    """
    return jnp.einsum("...i,ri->...r", x, lora_A)


@jax.custom_vjp
def widened(low: jax.Array, lora_B: jax.Array) -> jax.Array:
    """Return B low, `[..., out]`, of low `[..., rank]` and B `[out, rank]`."""
    return jnp.einsum("...r,or->...o", low, lora_B)


def _narrowed_back(kept: tuple[jax.Array, jax.Array], slope: jax.Array):
    x, lora_A = kept
    return jnp.einsum("...r,ri->...i", slope, lora_A), jnp.einsum("...r,...i->ri", slope, x)


def _widened_back(kept: tuple[jax.Array, jax.Array], slope: jax.Array):
    low, lora_B = kept
    of_B = jnp.einsum("...r,...o->ro", low, slope).T
    return jnp.einsum("...o,or->...r", slope, lora_B), of_B


narrowed.defvjp(lambda x, lora_A: (narrowed(x, lora_A), (x, lora_A)), _narrowed_back)
widened.defvjp(lambda low, lora_B: (widened(low, lora_B), (low, lora_B)), _widened_back)


def _flipout(x: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    """The noise of A times x, `[..., rank]`: one draw, with random signs of inputs and outputs for
    each vector of x (Wen et al. 2018; BLoB, section 3.3)."""
    noise_key, in_key, out_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    noise = deviation * jax.random.normal(noise_key, deviation.shape, jnp.float32)
    flipped = x * jax.random.rademacher(in_key, x.shape, jnp.float32)
    low = jnp.einsum("...i,ri->...r", flipped, noise)
    return low * jax.random.rademacher(out_key, low.shape, jnp.float32)


def normal_param(
    shape: tuple[int, ...], initializer_range: float, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Param:
    """Return a base weight drawn from normal(0, initializer_range)."""
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


@struct.dataclass
class Head:
    """Weight and adapter of the head, a pytree."""

    weight: jax.Array
    """`[vocab, hidden]` in the model's dtype; the embedding's if the two are tied"""
    lora_A: jax.Array | None
    """`[rank, hidden]` float32; None without an adapter"""
    lora_A_root: jax.Array | None
    """like lora_A if A is uncertain, else None"""
    lora_B: jax.Array | None
    """`[vocab, rank]` float32"""
    scale: float = struct.field(pytree_node=False)
    dropout: float = struct.field(pytree_node=False)
    divisor: float = struct.field(pytree_node=False, default=1.0)
    """divides the products"""
    softcap: float | None = struct.field(pytree_node=False, default=None)
    """what is divided, z, becomes softcap * tanh(z / softcap); None: it stays"""
    temperature: jax.Array | float | None = None
    """divides the logits, in float32; None: 1"""

    def logits(self, hidden: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return logits `[..., vocab]` of hidden `[..., hidden]`, accumulated in float32."""
        if hidden.dtype == self.weight.dtype:
            logits = jnp.einsum(
                "...d,vd->...v", hidden, self.weight, preferred_element_type=jnp.float32
            )
        else:
            logits = product(hidden, self.weight)
        if self.lora_A is not None:
            low = self._low(hidden, dropout_key)
            logits = logits + self.scale * jnp.einsum("...r,vr->...v", low, self.lora_B)
        return self._finished(logits)

    def option_logits(
        self, hidden: jax.Array, option_ids: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Return logits `[batch, options]` float32 of hidden `[batch, hidden]` for the tokens
        option_ids `[batch, options]`. Only their rows of the weight are read."""
        if hidden.dtype == self.weight.dtype:
            rows = self.weight[option_ids]
        else:
            rows = from_bits(to_bits(self.weight)[option_ids])
        # Rounded as in `logits`, so that both give the same numbers.
        rounded = hidden.astype(rows.dtype)
        logits = jnp.einsum("bd,bkd->bk", rounded, rows, preferred_element_type=jnp.float32)
        if self.lora_A is not None:
            low = self._low(hidden, dropout_key)
            logits = logits + self.scale * jnp.einsum("br,bkr->bk", low, self.lora_B[option_ids])
        return self._finished(logits)

    def slope(self, logits: jax.Array) -> jax.Array:
        """Return the derivative of `logits` in the products that they were made of, like `logits`,
        for a head without a temperature."""
        slope = jnp.full_like(logits, 1 / self.divisor)
        return slope if self.softcap is None else slope * (1 - (logits / self.softcap) ** 2)

    def _finished(self, logits: jax.Array) -> jax.Array:
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        # Hidden states in bfloat16 would be rounded, by up to 2^-9.
        return logits if self.temperature is None else logits / self.temperature

    def _low(self, hidden: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        return lora_input(hidden, self.lora_A, self.lora_A_root, self.dropout, dropout_key)
