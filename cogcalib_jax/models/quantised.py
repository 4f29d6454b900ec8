"""Frozen weights in 8 or 4 bits: numbers of a code book, with one scale for each block of a row.

A weight `[out, in]` is cut into blocks of 64 along `in`; the last block of a row may be shorter.
The scale of a block is its absolute maximum. `int8` rounds 127 w / scale. `nf4` takes the nearest
of 16 numbers that are equally likely under a normal distribution (QLoRA, Dettmers et al. 2023,
section 3 and appendix E), and packs rows 2 i and 2 i + 1 into the low and high halves of one byte.
Scales stay in float32: they are not quantised again.

Weights are quantised on the host while they are read, and come back in the product that needs them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.errors import UserError
from cogcalib_jax.models.config import Quantise
from cogcalib_jax.models.product import multiply

BLOCK = 64
SCALES = "scales"
"""the name of a quantised weight's scales, beside its `weight`"""
DTYPES = {"int8": np.dtype(np.int8), "nf4": np.dtype(np.uint8)}
# Appendix E of the paper.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_BETWEEN = (np.array(NF4[1:], np.float32) + np.array(NF4[:-1], np.float32)) / 2


def quantise_rows(weight: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes and scales of `weight` `[out, in]` (any float), quantised as the codes'
    dtype says; `out` is even.

    Codes: int8 `[out, in]`, or uint8 `[out / 2, in]`. Scales: float32 `[out, blocks]`. A block with
    a number that is not finite comes back as not finite.
    """
    weight = weight.astype(np.float32)
    columns = weight.shape[1]
    scales = np.maximum.reduceat(np.abs(weight), np.arange(0, columns, BLOCK), axis=1)
    with np.errstate(invalid="ignore"):
        ratio = weight / np.repeat(np.where(scales == 0, 1, scales), BLOCK, axis=1)[:, :columns]
    if dtype == DTYPES["int8"]:
        return np.rint(127 * np.nan_to_num(ratio)).astype(np.int8), scales
    codes = np.zeros(ratio.shape, np.uint8)
    for bound in _BETWEEN:
        codes += ratio > bound
    return codes[0::2] | codes[1::2] << 4, scales


def dequantise(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Return the weight `[..., out, in]` float32 from what `quantise_rows` made of it."""
    if codes.dtype == jnp.int8:
        numbers = codes.astype(jnp.float32) / 127
    else:
        rows = jnp.stack([codes & 15, codes >> 4], axis=-2)
        numbers = _looked_up(rows.reshape(*codes.shape[:-2], -1, codes.shape[-1]))
    return numbers * jnp.repeat(scales, BLOCK, axis=-1)[..., : codes.shape[-1]]


def _looked_up(codes: jax.Array) -> jax.Array:
    """Return the numbers of the code book, by choosing between halves of it: a gather from a small
    table is slow on a TPU, while this is fused into the product."""
    numbers = [jnp.float32(number) for number in NF4]
    for bit in range(4):
        is_set = (codes >> bit & 1).astype(bool)
        pairs = zip(numbers[0::2], numbers[1::2], strict=True)
        numbers = [jnp.where(is_set, odd, even) for even, odd in pairs]
    return numbers[0]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantised_product(
    x: jax.Array, codes: jax.Array, scales: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """Return x W^T `[..., out]` of x `[..., in]` in x's dtype, computed with W and x in `dtype`.

    The gradient is that of x alone. The backward pass computes W again: kept for it, W would take
    what quantising saves.
    """
    return multiply("...i,oi->...o", x, dequantise(codes, scales).astype(dtype))


def _forward(
    x: jax.Array, codes: jax.Array, scales: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return quantised_product(x, codes, scales, dtype), (codes, scales)


def _backward(
    dtype: jnp.dtype, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    weight = dequantise(*kept).astype(dtype)
    return multiply("...o,oi->...i", gradient, weight), None, None


quantised_product.defvjp(_forward, _backward)


def parameter_shapes(
    kind: Quantise, shape: tuple[int, ...]
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return codes and scales of a weight of this shape `[*stack, out, in]`, as shapes (UserError:
    an odd number of rows)."""
    *stack, out, columns = shape
    if out % 2:
        raise UserError(
            f"model.quantise is {kind}, and a projection of the model has {out:,} rows; expected an"
            " even number. Use none"
        )
    codes = (*stack, out // 2 if kind == "nf4" else out, columns)
    scales = (*stack, out, -(-columns // BLOCK))
    return jax.ShapeDtypeStruct(codes, DTYPES[kind]), jax.ShapeDtypeStruct(scales, jnp.float32)


def parts(kind: str, value: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Return the number of parts that a parameter can be cut into along each axis.

    Codes and their scales have the same numbers, so that a device holds both of a block.

    kind: the last part of the parameter's path.
    """
    if kind != SCALES and value.dtype not in DTYPES.values():
        return value.shape
    *stack, rows, columns = value.shape
    if kind == SCALES:
        return (*stack, rows // 2, columns)
    blocks = columns // BLOCK if columns % BLOCK == 0 else 1
    return (*stack, rows if value.dtype == DTYPES["nf4"] else rows // 2, blocks)


def quantisation(state: nnx.State) -> Quantise:
    """Return how the base among a decoder's parameters is held."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    return next((kind for kind, dtype in DTYPES.items() if dtype in dtypes), "none")
