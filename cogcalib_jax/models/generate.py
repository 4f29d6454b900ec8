"""Generation with a key-value cache: greedy, or sampling with temperature and top-p.

Prompts are right-padded, and so is the batch, so that calls of like sizes share a compilation,
whatever the parameters, stop tokens, temperature and top-p.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.errors import UserError, check
from cogcalib_jax.models.block import KVCache
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.sharding import batch_parts, fetch, shard_batch

SHORTEST_BUCKET = 16

Choice = Literal["greedy", "sample", "nucleus"]


@dataclass(frozen=True)
class SamplingConfig:
    """The choice of tokens."""

    max_new_tokens: int = 32
    """most tokens for each prompt, with the token that ends the text"""
    temperature: float = 0.0
    """0: always the likeliest token; else logits are divided by it before sampling"""
    top_p: float = 1.0
    """sample only from the likeliest tokens that together reach this probability"""

    def __post_init__(self) -> None:
        check(self.max_new_tokens >= 1, "max_new_tokens", "must be an integer of at least 1")
        check(self.temperature >= 0, "temperature", "must be at least 0")
        check(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")


class Generated(NamedTuple):
    """The continuation of one prompt."""

    tokens: tuple[int, ...]
    """with the token that ended the text, if one was reached"""
    logprobs: tuple[float, ...]
    """log-probability of each token at temperature 1 over the whole vocabulary, in nats"""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    stop: Collection[int] = (),
    pad_to: tuple[int, int] | None = None,
) -> list[Generated]:
    """Return a continuation of each prompt, up to a token that ends the text, or the limit.

    A greedy continuation does not depend on the other prompts.

    Args:
        prompts: token ids of each prompt, at least one.
        stop: tokens that end a continuation, beside the model's end-of-text tokens.
        pad_to: rows and prompt tokens to pad to, so that calls share a compilation; None: the next
            powers of two.

    Raises:
        UserError: an empty prompt, or one that leaves no room in the model's context.
    """
    if not prompts:
        return []
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise UserError("generate: a prompt has no tokens; begin it with the model's BOS token")
    require_room(decoder.config.max_position_embeddings, longest, sampling.max_new_tokens)
    _require_one_rope(decoder.config.switches_at, prompts, sampling.max_new_tokens)
    rows, time = pad_to or _padded(decoder, len(prompts), longest)
    ids = np.zeros((rows, time), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    inputs = (ids, lengths) if decoder.mesh is None else shard_batch(decoder.mesh, (ids, lengths))

    ends = np.zeros(decoder.config.vocab_size, bool)
    # A config.json may name ids that the model does not have, such as -1 for none.
    ids_that_end = [*decoder.config.eos_token_ids, *stop]
    ends[[i for i in ids_that_end if 0 <= i < len(ends)]] = True
    graphdef, state = nnx.split(decoder)
    generated = _generate(
        graphdef,
        sampling.max_new_tokens,
        _choice(sampling),
        state,
        *inputs,
        ends,
        np.float32(sampling.temperature or 1.0),
        np.float32(sampling.top_p),
        jax.random.key(seed),
    )
    tokens, logprobs, counts = map(fetch, generated)
    return [
        Generated(tuple(tokens[row, :n].tolist()), tuple(logprobs[row, :n].tolist()))
        for row, n in enumerate(counts[: len(prompts)])
    ]


def require_room(context: int, prompt: int, new: int) -> None:
    """Refuse `prompt` tokens and `new` ones that exceed the model's `context`."""
    if prompt + new > context:
        raise UserError(
            f"generate: a prompt of {prompt} tokens and {new} new ones exceed the model's context"
            f" of {context}; shorten the prompt or max_new_tokens"
        )


def _require_one_rope(switch: int | None, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Refuse a text that might grow beyond the `switch` of longrope: transformers reads all of it
    again there."""
    for prompt in prompts:
        # The last token that is chosen is not read.
        if switch is not None and len(prompt) <= switch < len(prompt) + new - 1:
            raise UserError(
                f"generate: a prompt of {len(prompt)} tokens and {new} new ones exceed the"
                f" {switch} tokens beyond which this model has another RoPE; expected both on one"
                " side. Shorten the prompt or max_new_tokens"
            )


def _padded(decoder: Decoder, prompts: int, longest: int) -> tuple[int, int]:
    parts = 1 if decoder.mesh is None else batch_parts(decoder.mesh)
    rows = parts * _power_of_two(-(-prompts // parts))
    return rows, max(SHORTEST_BUCKET, _power_of_two(longest))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _choice(sampling: SamplingConfig) -> Choice:
    if sampling.temperature == 0:
        return "greedy"
    # Only a nucleus needs the vocabulary sorted.
    return "sample" if sampling.top_p == 1 else "nucleus"


class _Progress(NamedTuple):
    step: jax.Array
    """int32: tokens chosen so far"""
    logits: jax.Array
    """`[rows, vocab]` float32 for the next token"""
    cache: KVCache
    tokens: jax.Array
    """int32 `[rows, max_new_tokens]`"""
    logprobs: jax.Array
    """float32 like tokens"""
    counts: jax.Array
    """int32 `[rows]`: tokens that belong to the row's continuation"""
    stopped: jax.Array
    """bool `[rows]`"""


@partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    graphdef: nnx.GraphDef,
    max_new_tokens: int,
    choice: Choice,
    state: nnx.State,
    ids: jax.Array,
    lengths: jax.Array,
    ends: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """ids `[rows, time]` right-padded, with rows of length 0 as filler; ends bool `[vocab]`."""
    decoder = nnx.merge(graphdef, state)
    rows, time = ids.shape

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        if choice == "greedy":
            return jnp.argmax(logits, -1).astype(jnp.int32)
        kept = logits / temperature
        if choice == "nucleus":
            kept = keep_top_p(kept, top_p)
        return jax.random.categorical(jax.random.fold_in(key, step), kept).astype(jnp.int32)

    def proceed(now: _Progress) -> jax.Array:
        return (now.step < max_new_tokens) & ~jnp.all(now.stopped)

    def advance(now: _Progress) -> _Progress:
        token = choose(now.logits, now.step)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(now.logits), token[:, None], -1)[:, 0]
        counts = now.counts + ~now.stopped
        stopped = now.stopped | ends[token]
        # Padding in the cache behind a prompt is overwritten before it is seen.
        positions = jnp.minimum(lengths + now.step, time + max_new_tokens - 1)[:, None]
        hidden, cache = decoder.cached_hidden_states(
            token[:, None], positions, now.cache, ends=reach
        )
        return _Progress(
            now.step + 1,
            decoder.logits(hidden[:, 0]),
            cache,
            now.tokens.at[:, now.step].set(token),
            now.logprobs.at[:, now.step].set(logprob),
            counts,
            stopped,
        )

    cache = decoder.empty_cache(rows, time + max_new_tokens)
    # For longrope: `generate` refuses texts that might grow beyond its switch.
    reach = lengths + max_new_tokens - 1
    positions = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32), (rows, time))
    hidden, cache = decoder.cached_hidden_states(ids, positions, cache, ends=reach)
    last = jnp.maximum(lengths - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    end = jax.lax.while_loop(
        proceed,
        advance,
        _Progress(
            jnp.zeros((), jnp.int32),
            decoder.logits(hidden),
            cache,
            jnp.zeros((rows, max_new_tokens), jnp.int32),
            jnp.zeros((rows, max_new_tokens), jnp.float32),
            jnp.zeros(rows, jnp.int32),
            lengths == 0,
        ),
    )
    return end.tokens, end.logprobs, end.counts


def keep_top_p(logits: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Return logits `[..., vocab]` with -inf outside the nucleus (Holtzman et al. 2020).

    The nucleus is the likeliest tokens, at least one, whose probabilities together reach `top_p`.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    lowest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)
