"""Linear layers and the output head, with low-rank adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from cogcalib_jax.models.config import LoraConfig, Quantise, UncertainLora
from cogcalib_jax.models.product import from_bits, product, to_bits
from cogcalib_jax.models.quantised import parameter_shapes, quantised_product

# First standard deviations of A lie between half of this squared and this squared (BLoB, eps).
FIRST_ROOT = 0.05


class Linear(nnx.Module):
    """y = x W^T + b + scale * B A x, with an adapter B A or without.

    With DoRA the rows of W + scale * B A are scaled to trained lengths (`gain`). lora_magnitude
    `[*stack, out]`, a LoRAParam, is the difference of these lengths from those of W, so an adapter
    of zeros is the base, as with LoRA.

    Layers of a stack may have adapters of different ranks and scales, or none: A and B are as large
    as the largest rank wants, and zero beyond a layer's own.

    Parameters: weight `[*stack, out, in]` and bias `[*stack, out]` in `dtype`; lora_A `[*stack,
    rank, in]` and lora_B `[*stack, out, rank]` in float32, LoRAParams; with UncertainLora also
    lora_A_root, like lora_A; of a head with trained rows lora_rows `[rows, in]`, what these have
    more than the weight's. `stack` is the axis of layers that a scan runs along. The adapter is
    computed in float32, and begins as in PEFT: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5),
    B zero. `weight=False` leaves the weight out, for a head that shares the embedding. A quantised
    weight holds codes, and has `scales`.
    """

    def __init__(
        self,
        stack: tuple[int, ...],
        out_features: int,
        in_features: int,
        *,
        bias: bool = False,
        weight: bool = True,
        name: str = "",
        lora: LoraConfig | None = None,
        initializer_range: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        placed = [(0, 0.0)]
        if lora is not None:
            placed = [lora.placed(name, layer) for layer in range(stack[0] if stack else 1)]
        ranks, scales = zip(*placed, strict=True)
        self.dtype = jnp.dtype(dtype)
        self.row_ids = None if lora is None or stack else lora.trained_rows(name)
        self.lora_rows = trained_rows(self.row_ids, out_features, in_features)
        lora = lora if any(ranks) else None
        self.scale = scales if len(set(scales)) > 1 else scales[0]
        self.layer_scale = nnx.data(None)
        self.dropout = 0.0 if lora is None else lora.lora_dropout
        # Each attribute is set once: NNX then fixes whether it holds data.
        shape = (*stack, out_features, in_features)
        self.weight = normal_param(shape, initializer_range, dtype, rngs) if weight else None
        self.scales: nnx.Param | None = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(shape[:-1], dtype)) if bias else None
        self.lora_A = None if lora is None else _lora_a(stack, ranks, in_features, rngs)
        self.lora_B = None if lora is None else _lora_b(stack, max(ranks), out_features)
        dora = lora is not None and lora.use_dora
        self.lora_magnitude = nnx.LoRAParam(jnp.zeros(shape[:-1], jnp.float32)) if dora else None
        uncertain = isinstance(lora, UncertainLora)
        self.lora_A_root = _lora_a_root(self.lora_A.shape, rngs) if uncertain else None

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return y `[..., out]` of x `[..., in]`, in x's dtype, for a layer without `stack`.

        dropout_key: None: without dropout, and with A's mean.
        """
        weight = self.weight[...]
        if self.scales is None:
            y = product(x, weight)
        else:
            y = quantised_product(x, weight, self.scales[...], self.dtype)
        scale = self.scale if self.layer_scale is None else self.layer_scale[...]
        update = None
        if self.lora_A is not None:
            low = self.lora_input(x, dropout_key)
            update = scale * widened(low, self.lora_B[...])
        if self.lora_magnitude is not None:
            seen = y
            if dropout_key is not None and self.dropout > 0:
                kept = dropped(x, self.dropout, dropout_key)
                seen = product(kept.astype(x.dtype), weight)
            length = gain(
                weight, self.lora_A[...], self.lora_B[...], scale, self.lora_magnitude[...]
            )
            y, update = y + (length - 1) * seen, length * update
        if self.bias is not None:
            y = y + self.bias[...]
        return y if update is None else (y + update).astype(x.dtype)

    def stacked_scale(self, axes: int) -> float | np.ndarray:
        """Return the factor of B A, or those of layers as `[layers, 1, ...]` with `axes` axes."""
        if isinstance(self.scale, float):
            return self.scale
        return np.asarray(self.scale, np.float32).reshape(-1, *[1] * (axes - 1))

    def quantise(self, kind: Quantise) -> None:
        """Give the layer room for a quantised weight, whose values are not set (`quantised.py`)."""
        codes, scales = parameter_shapes(kind, self.weight.shape)
        self.weight = nnx.Param(jnp.zeros(codes.shape, codes.dtype))
        self.scales = nnx.Param(jnp.zeros(scales.shape, scales.dtype))

    def lora_input(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Return A x after dropout, `[..., rank]` float32."""
        root = None if self.lora_A_root is None else self.lora_A_root[...]
        return lora_input(x, self.lora_A[...], root, self.dropout, dropout_key)


def with_layer_scales(layers: nnx.Module) -> nnx.Module:
    """Return stacked layers for a scan along them, with their factors of B A as arrays where they
    differ. They are no parameters: nothing stores them."""
    graphdef, state = nnx.split(layers)
    copy = nnx.merge(graphdef, state)
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, Linear) and not isinstance(module.scale, float):
            module.layer_scale = nnx.Variable(jnp.asarray(module.scale, jnp.float32))
    return copy


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
    x = dropped(x, dropout, dropout_key)
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


def dropped(x: jax.Array, dropout: float, key: jax.Array | None) -> jax.Array:
    """Return x after dropout in float32; key: None: none."""
    x = x.astype(jnp.float32)
    if key is None or dropout == 0:
        return x
    keep = 1 - dropout
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0)


def trained_rows(ids: tuple[int, ...] | None, vocabulary: int, width: int) -> nnx.LoRAParam | None:
    """Return zeros `[rows, width]` for trained rows of a table; ids: () for all; None: none."""
    if ids is None:
        return None
    return nnx.LoRAParam(jnp.zeros((len(ids) or vocabulary, width), jnp.float32))


def row_index(ids: tuple[int, ...]) -> np.ndarray | slice:
    """Return the index of trained rows; ids: () for all."""
    return np.asarray(ids, np.int32) if ids else slice(None)


def rows_of(rows: jax.Array, ids: tuple[int, ...], tokens: jax.Array) -> jax.Array:
    """Return `[..., width]` for tokens `[...]`: differences of trained rows, zeros for others."""
    if not ids:
        return rows[tokens]
    place = jnp.argmax(tokens[..., None] == jnp.asarray(ids), -1)
    return jnp.where(jnp.isin(tokens, jnp.asarray(ids))[..., None], rows[place], 0.0)


def row_norms(weight: jax.Array) -> jax.Array:
    """Return the lengths of rows `[..., out]` of weight `[..., out, in]`, float32."""
    return jnp.sqrt(jnp.sum(jnp.square(from_bits(weight).astype(jnp.float32)), -1))


def gain(
    weight: jax.Array,
    lora_A: jax.Array,
    lora_B: jax.Array,
    scale: jax.Array | float,
    magnitude: jax.Array,
) -> jax.Array:
    """Return DoRA's factors of rows (Liu et al. 2024, equation 5): m / ||W + scale * B A||.

    The norm counts as a constant (their section 4.3), as in PEFT. It is formed without W + scale *
    B A in memory. PEFT takes it in the dtype of the base.

    Args:
        weight: W `[..., out, in]`.
        lora_A: `[..., rank, in]`.
        lora_B: `[..., out, rank]`.
        scale: of one layer, or `[..., 1]`; a layer without an adapter has 0, and its factors are 1.
        magnitude: m - ||W||, `[..., out]`.

    Returns:
        `[..., out]` float32.
    """
    fixed = map(jax.lax.stop_gradient, (from_bits(weight), lora_A, lora_B))
    weight, lora_A, lora_B = (x.astype(jnp.float32) for x in fixed)
    own = row_norms(weight)
    product = partial(jnp.einsum, precision="highest")
    along = product("...or,...or->...o", product("...oi,...ri->...or", weight, lora_A), lora_B)
    square = product("...ri,...qi->...rq", lora_A, lora_A)
    across = product("...or,...oq,...rq->...o", lora_B, lora_B, square)
    norm = jnp.sqrt(own**2 + 2 * scale * along + scale**2 * across)
    return (own + jnp.where(jnp.asarray(scale) > 0, magnitude, 0.0)) / norm


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


def _lora_a(
    stack: tuple[int, ...], ranks: tuple[int, ...], in_features: int, rngs: nnx.Rngs
) -> nnx.LoRAParam:
    bound = 1 / math.sqrt(in_features)
    shape = (*stack, max(ranks), in_features)
    values = jax.random.uniform(rngs.lora(), shape, jnp.float32, -bound, bound)
    if len(set(ranks)) > 1:
        values *= (np.arange(max(ranks)) < np.asarray(ranks)[:, None])[..., None]
    return nnx.LoRAParam(values)


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
    gain: jax.Array | None = None
    """DoRA's factors of rows, `[vocab]` float32"""
    rows: jax.Array | None = None
    """`[rows, hidden]` float32, what trained rows have more than the weight's; None: none"""
    row_ids: tuple[int, ...] = struct.field(pytree_node=False, default=())
    """their numbers; (): all"""

    def logits(self, hidden: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return logits `[..., vocab]` of hidden `[..., hidden]`, accumulated in float32."""

        def of_weight(hidden: jax.Array) -> jax.Array:
            if hidden.dtype == self.weight.dtype:
                logits = jnp.einsum(
                    "...d,vd->...v", hidden, self.weight, preferred_element_type=jnp.float32
                )
            else:
                logits = product(hidden, self.weight)
            if self.rows is None:
                return logits
            more = jnp.einsum("...d,nd->...n", hidden.astype(jnp.float32), self.rows)
            return logits.at[..., row_index(self.row_ids)].add(more)

        def of_adapter(low: jax.Array) -> jax.Array:
            return jnp.einsum("...r,vr->...v", low, self.lora_B)

        return self._adapted(hidden, dropout_key, of_weight, of_adapter, self.gain)

    def option_logits(
        self, hidden: jax.Array, option_ids: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Return logits `[batch, options]` float32 of hidden `[batch, hidden]` for the tokens
        option_ids `[batch, options]`. Only their rows of the weight are read."""
        if hidden.dtype == self.weight.dtype:
            rows = self.weight[option_ids]
        else:
            rows = from_bits(to_bits(self.weight)[option_ids])

        def of_weight(hidden: jax.Array) -> jax.Array:
            # Rounded as in `logits`, so that both give the same numbers.
            rounded = hidden.astype(rows.dtype)
            logits = jnp.einsum("bd,bkd->bk", rounded, rows, preferred_element_type=jnp.float32)
            if self.rows is None:
                return logits
            more = rows_of(self.rows, self.row_ids, option_ids)
            return logits + jnp.einsum("bd,bkd->bk", hidden.astype(jnp.float32), more)

        def of_adapter(low: jax.Array) -> jax.Array:
            return jnp.einsum("br,bkr->bk", low, self.lora_B[option_ids])

        length = None if self.gain is None else self.gain[option_ids]
        return self._adapted(hidden, dropout_key, of_weight, of_adapter, length)

    def slope(self, logits: jax.Array) -> jax.Array:
        """Return the derivative of `logits` by the products that form them, like `logits`, for a
        head without a temperature."""
        slope = jnp.full_like(logits, 1 / self.divisor)
        return slope if self.softcap is None else slope * (1 - (logits / self.softcap) ** 2)

    def _adapted(
        self,
        hidden: jax.Array,
        key: jax.Array | None,
        of_weight: Callable[[jax.Array], jax.Array],
        of_adapter: Callable[[jax.Array], jax.Array],
        length: jax.Array | None,
    ) -> jax.Array:
        """Logits from the products with the weight and with B; length: of their rows, for DoRA."""
        logits = of_weight(hidden)
        if self.lora_A is not None:
            low = lora_input(hidden, self.lora_A, self.lora_A_root, self.dropout, key)
            update = self.scale * of_adapter(low)
            if length is not None:
                seen = logits
                if key is not None and self.dropout > 0:
                    seen = of_weight(dropped(hidden, self.dropout, key).astype(hidden.dtype))
                logits, update = logits + (length - 1) * seen, length * update
            logits = logits + update
        return self._finished(logits)

    def _finished(self, logits: jax.Array) -> jax.Array:
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        # Hidden states in bfloat16 would be rounded, by up to 2^-9.
        return logits if self.temperature is None else logits / self.temperature
