"""Products with a frozen bfloat16 weight on CPUs.

A CPU with bfloat16 instructions multiplies bfloat16 operands fast only if the result is float32,
and is slow at everything else in bfloat16. So a model in bfloat16 keeps its activations in float32
there and rounds them at each product alone. On two cores of an Intel Xeon with AMX, `[256, 576]`
times `[1536, 576]` runs at 260 GFLOP/s in float32, at 220 with a bfloat16 result, and at 1,080 this
way (JAX 0.10.2).

XLA cannot slice or gather bfloat16 on a CPU: it converts the whole array to float32 first, in every
step. So a weight travels as its bits, a uint16 array, until it is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


def to_bits(weight: jax.Array) -> jax.Array:
    """Return a bfloat16 array as uint16, and others as they are."""
    bfloat16 = weight.dtype == jnp.bfloat16
    return jax.lax.bitcast_convert_type(weight, jnp.uint16) if bfloat16 else weight


def from_bits(weight: jax.Array) -> jax.Array:
    """Return the inverse of `to_bits`."""
    bits = weight.dtype == jnp.uint16
    return jax.lax.bitcast_convert_type(weight, jnp.bfloat16) if bits else weight


def is_rounded(x: jax.Array, dtype: jnp.dtype) -> bool:
    """Return whether a base of `dtype` rounds the activations x at its products: bfloat16 on a
    CPU."""
    return dtype == jnp.bfloat16 and x.dtype == jnp.float32


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return x W^T, `[..., out]`, of x `[..., in]` and weight `[out, in]`.

    Operands of one dtype are multiplied as they are. A float32 x is rounded to a bfloat16 weight,
    which may be given as bits; the result and the gradient of x are float32, and the gradient of
    the result is rounded likewise. Such a weight is a constant: it has no gradient.
    """
    if x.dtype == weight.dtype:
        return multiply("...i,oi->...o", x, weight)
    return _rounded(x, to_bits(weight))


def multiply(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return an einsum in x's dtype; x is rounded to the dtype of the weight first."""
    rounded = x.astype(weight.dtype)
    return jnp.einsum(equation, rounded, weight, preferred_element_type=x.dtype)


@jax.custom_vjp
def _rounded(x: jax.Array, bits: jax.Array) -> jax.Array:
    return multiply("...i,oi->...o", x, from_bits(bits))


def _forward(x: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _rounded(x, bits), bits


def _backward(bits: jax.Array, slope: jax.Array) -> tuple[jax.Array, None]:
    return multiply("...o,oi->...i", slope, from_bits(bits)), None


_rounded.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def held_as_bits(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Return function(*arrays) of float32 arrays, which are held as bfloat16 bits for its gradient.

    The result is that of the arrays as they are. The gradient is taken where they are rounded, and
    `function` is computed again for it.
    """
    return function(*arrays)


def _hold(function: Callable[..., jax.Array], *arrays: jax.Array):
    return function(*arrays), tuple(to_bits(x.astype(jnp.bfloat16)) for x in arrays)


def _let_go(function: Callable[..., jax.Array], held: tuple[jax.Array, ...], slope: jax.Array):
    arrays = (from_bits(bits).astype(jnp.float32) for bits in held)
    return jax.vjp(function, *arrays)[1](slope)


held_as_bits.defvjp(_hold, _let_go)
