"""A random decoder and random questions: small enough to compile fast, with every shape that
matters (three to five options, options of one token or of several, prompts of many lengths)."""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.data.batching import Batch, eval_batches, length_buckets
from cogcalib_jax.data.example import Encoded, EncodedSplit, Example
from cogcalib_jax.data.stream import TrainStream
from cogcalib_jax.models.config import DecoderConfig
from cogcalib_jax.models.decoder import Decoder
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.models.parameters import FrozenModel, split_model
from tests.models.small import small_decoder

VOCAB = 56
TINY = DecoderConfig(
    model_type="llama",
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=("q_proj", "v_proj", "lm_head"))


def tiny_decoder(**options) -> Decoder:
    """LoRA's B is away from zero, or A would have neither effect nor gradient."""
    return small_decoder(options.pop("config", TINY), **({"lora": LORA} | options))


@cache
def tiny_model() -> tuple[FrozenModel, nnx.State]:
    return split_model(tiny_decoder())


def questions(
    n: int,
    *,
    seed: int = 0,
    options: Sequence[int] = (3, 4, 5),
    tokens: int = 1,
    longest: int = 13,
) -> EncodedSplit:
    """Rows with `options` many options in turn and prompts of up to `longest` tokens; each option
    has 1 to `tokens` tokens, and where several are allowed the options of a row begin alike."""
    rng = np.random.default_rng([seed, tokens])
    rows = []
    for i in range(n):
        k = options[i % len(options)]
        prompt = tuple(rng.integers(3, VOCAB, rng.integers(3, longest + 1)).tolist())
        last = rng.choice(np.arange(3, VOCAB), k, replace=False).tolist()
        start = rng.integers(3, VOCAB, tokens - 1).tolist()
        ids = tuple((*start[: j % tokens], one) for j, one in enumerate(last))
        answer = int(rng.integers(k))
        known = {"known": bool(rng.integers(2))}
        example = Example(f"q{i}", f"question {i}", tuple(map(str, last)), answer, extra=known)
        texts = tuple(" ".join(map(str, one)) for one in ids)
        rows.append(Encoded(f"q{i}", f"prompt {i}", texts, prompt, ids, answer, example))
    return EncodedSplit(rows)


def one_batch(rows: EncodedSplit, size: int | None = None, bucket: int | None = None) -> Batch:
    """All rows in one batch, shortest first, padded to `bucket` where given."""
    buckets = length_buckets(rows.lengths) if bucket is None else (bucket,)
    (batch,) = eval_batches(rows, size or len(rows), (max(buckets),))
    return batch


def micro_batches(rows: EncodedSplit, accumulation: int, size: int = 8) -> tuple[Batch, np.ndarray]:
    """The first training batch cut into micro-batches, and labels that differ by row."""
    batch = TrainStream(rows, 0, size, tokens_per_shape=1e9).batch(0)
    labels = (batch.row % 2).astype(np.float32)
    # Both sizes written out: options of several tokens make axes of length 0, which hide a -1.
    sizes = (accumulation, size // accumulation)
    return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), (batch, labels))


def full_logits(decoder: Decoder, ids: Sequence[int]) -> np.ndarray:
    """Logits `[time, vocab]` of one unpadded row, float64, through one big matrix per adapter."""
    hidden = np.asarray(_hidden(*nnx.split(decoder), jnp.asarray([ids])))[0].astype(np.float64)
    head = decoder.lm_head
    weight = decoder.embed_tokens.weight if head.weight is None else head.weight
    weight = np.asarray(weight[...], np.float64)
    if head.lora_A is not None:
        low_rank = np.asarray(head.lora_B[...], np.float64) @ np.asarray(head.lora_A[...])
        weight = weight + head.scale * low_rank
    logits, cap = hidden @ weight.T / decoder.config.logits_divisor, decoder.config.final_softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


@jax.jit
def _padded_hidden(graphdef, state, ids):
    return nnx.merge(graphdef, state).hidden_states(ids)


def _hidden(graphdef, state, ids):
    # One compiled shape for all rows: a causal model's real tokens never see what follows.
    padded = jnp.zeros((1, 32), jnp.int32).at[:, : ids.shape[1]].set(ids)
    return _padded_hidden(graphdef, state, padded)[:, : ids.shape[1]]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def option_logprob(decoder: Decoder, row: Encoded, option: int, temperature=1.0) -> float:
    """Log-probability of a whole option, token by token, from the full logits of its own text."""
    completion = row.completion_ids[option]
    logits = full_logits(decoder, (*row.prompt_ids, *completion)[:-1])
    scored = log_softmax(logits[len(row.prompt_ids) - 1 :] / temperature)
    return float(sum(scored[t, token] for t, token in enumerate(completion)))
