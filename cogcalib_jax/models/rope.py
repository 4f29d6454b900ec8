"""Rotary position embedding (Su et al. 2021) and its extensions to longer contexts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cogcalib_jax.models.config import DecoderConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Return the radians per position of each rotated pair, and the scale of cosine and sine.

    The pairs are `[head_dim / 2]` float32; the scale is 1 except for yarn. llama3: the rule of
    Llama 3.1. yarn: Peng et al. 2023, equations 17 to 23.
    """
    # float32 throughout, as the released models were trained: at position 10,000 another rounding
    # of a frequency shows in the logits.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.float32(rope.theta) ** exponent
    if rope.type == "linear":
        return frequencies / np.float32(rope.factor), 1.0
    if rope.type == "llama3":
        return _llama3(rope, frequencies), 1.0
    if rope.type == "yarn":
        scale = rope.attention_factor
        if scale is None:
            scale = yarn_scale(rope.factor)
        return _yarn(rope, frequencies), scale
    return frequencies, 1.0


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """Return YaRN's scale of the attention (equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    turns = rope.original_max_position_embeddings * frequencies / np.float32(2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return ((1 - kept) * frequencies / rope.factor + kept * frequencies).astype(np.float32)


def _yarn(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    pairs = frequencies.size

    def pair_that_turns(times: float) -> float:
        wavelength = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return pairs * math.log(wavelength) / math.log(rope.theta)

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(pairs, dtype=np.float32) - low) / (high - low), 0.0, 1.0)
    stretched = frequencies / np.float32(rope.factor)
    return (stretched * divided + frequencies * (1 - divided)).astype(np.float32)


def layer_rotations(
    config: DecoderConfig, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return the rotations of all layers for `positions` `[1|batch, time]`.

    Returns:
        Cosine and sine `[1|batch, time, pairs]` float32, and None. If layers differ, both have a
        leading axis of rotations, and the third is each layer's index there, int32 `[layers]`.
    """
    kinds = sorted(set(config.layer_ropes))
    ropes = [None if kind < 0 else config.ropes[kind] for kind in kinds]
    pairs = [rotation(rope, config.head_dim, positions) for rope in ropes]
    if len(pairs) == 1:
        return *pairs[0], None
    cos, sin = (jnp.stack(parts) for parts in zip(*pairs, strict=True))
    return cos, sin, jnp.asarray([kinds.index(i) for i in config.layer_ropes], jnp.int32)


def rotation(
    rope: RopeConfig | None, head_dim: int, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine `[..., head_dim / 2]` float32 for integer `positions` `[...]`; None:
    those that rotate nothing."""
    if rope is None:
        still = jnp.zeros((*positions.shape, head_dim // 2), jnp.float32)
        return still + 1, still
    frequencies, scale = inverse_frequencies(rope, head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Return heads `x` `[batch, time, heads, head_dim]` rotated by `cos`, `sin` `[1|batch, time,
    pairs]`.

    Pair i is (i, i + head_dim / 2), as in Hugging Face checkpoints. Computed in float32; the result
    has x's dtype.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
