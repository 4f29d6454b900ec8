"""Rotary position embedding (Su et al. 2021) and its extensions to longer contexts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from cogcalib_jax.models.config import DecoderConfig, RopeConfig


def inverse_frequencies(
    rope: RopeConfig, head_dim: int, *, long: bool = False
) -> tuple[np.ndarray, float]:
    """Return the radians per position of each rotated pair, and the scale of cosine and sine.

    The pairs are `[pairs]` float32; the scale is 1 except for yarn and longrope. llama3: the rule
    of Llama 3.1. yarn: Peng et al. 2023, equations 17 to 23. longrope: Ding et al. 2024, with the
    scale of Phi-3.

    long: whether the text is longer than the original context (longrope).
    """
    # float32 throughout, as the released models were trained: at position 10,000 another rounding
    # of a frequency shows in the logits.
    dims = int(head_dim * rope.fraction)
    exponent = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    wavelengths = np.float32(rope.theta) ** exponent
    if rope.type == "longrope":
        factors = np.array(rope.long_factor if long else rope.short_factor, np.float32)
        return np.float32(1.0) / (factors * wavelengths), _longrope_scale(rope)
    frequencies = np.float32(1.0) / wavelengths
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


def _longrope_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor == 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))


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
    config: DecoderConfig, positions: jax.Array, ends: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return the rotations of all layers for `positions` `[1|batch, time]`.

    ends: see `rotation`.

    Returns:
        Cosine and sine `[1|batch, time, pairs]` float32, and None. If layers differ, both have a
        leading axis of rotations, and the third is each layer's index there, int32 `[layers]`.
    """
    kinds = sorted(set(config.layer_ropes))
    still = RopeConfig(fraction=config.ropes[0].fraction)
    tables = []
    for kind in kinds:
        rope = still if kind < 0 else config.ropes[kind]
        where = jnp.zeros_like(positions) if kind < 0 else positions
        tables.append(rotation(rope, config.head_dim, where, ends))
    if len(tables) == 1:
        return *tables[0], None
    cos, sin = (jnp.stack(parts) for parts in zip(*tables, strict=True))
    return cos, sin, jnp.asarray([kinds.index(i) for i in config.layer_ropes], jnp.int32)


def rotation(
    rope: RopeConfig, head_dim: int, positions: jax.Array, ends: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine `[..., pairs]` float32 for integer `positions` `[...]`.

    ends: how many positions the text of each row has, int32 `[batch]`; longrope has other
    frequencies in texts beyond the original context. None: no text is longer.
    """
    frequencies, scale = inverse_frequencies(rope, head_dim)
    if rope.type == "longrope" and ends is not None:
        stretched, _ = inverse_frequencies(rope, head_dim, long=True)
        is_long = ends > rope.original_max_position_embeddings
        frequencies = jnp.where(is_long[:, None, None], stretched, frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Return heads `x` `[batch, time, heads, head_dim]` rotated by `cos`, `sin` `[1|batch, time,
    pairs]`.

    Pair i is (i, i + pairs), as in Hugging Face checkpoints; dimensions behind the pairs stay.
    Computed in float32; the result has x's dtype.
    """
    dims = 2 * cos.shape[-1]
    if dims < x.shape[-1]:
        turned = rotate(x[..., :dims], cos, sin)
        return jnp.concatenate([turned, x[..., dims:]], axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def query_scale(rope: RopeConfig, positions: jax.Array) -> jax.Array | None:
    """Return the factor of rotated queries at `positions` `[1|batch, time]`, float32 `[1|batch,
    time, 1, 1]`; None: 1.

    Ministral 3 has it from Llama 4 (`get_llama_4_attn_scale` in transformers).
    """
    if not rope.query_beta:
        return None
    contexts = positions // rope.original_max_position_embeddings
    return (1 + rope.query_beta * jnp.log1p(contexts.astype(jnp.float32)))[..., None, None]
