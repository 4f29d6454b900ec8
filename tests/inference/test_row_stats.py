"""The head's statistics equal those of the full matrix of logits, and cost no more than asked."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.inference.forward import row_stats
from cogcalib_jax.method.terms import TERMS, Term
from cogcalib_jax.sharding import MeshConfig, make_mesh, named_sharding
from tests.inference.tiny import LORA, TINY, VOCAB, tiny_decoder

METHODS = {
    "sft": None,
    "ls": TERMS.make("ls"),
    "mbls": TERMS.make("mbls(margin=1, reduction=sum)"),
    "ecp": TERMS.make("ecp"),
}
DECODERS = {
    "adapted": (TINY, LORA),
    "tied": (replace(TINY, tie_word_embeddings=True), LORA),
}


def positions(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    hidden = rng.normal(size=(rows, 1, TINY.hidden_size)).astype(np.float32)
    return hidden, rng.integers(0, VOCAB, (rows, 1)).astype(np.int32)


def naive(decoder, hidden, targets, name):
    """The same numbers by definition, from all logits at once."""
    head = decoder.lm_head
    weight = (decoder.embed_tokens if head.weight is None else head).weight[...]
    if head.lora_A is not None:
        weight = weight + head.scale * head.lora_B[...] @ head.lora_A[...]
    logits = hidden @ weight.T
    probs = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    cal = {
        "sft": lambda: None,
        "ls": lambda: -jnp.log(probs).mean(-1),
        "mbls": lambda: jnp.maximum(logits.max(-1, keepdims=True) - logits - 1.0, 0).sum(-1),
        "ecp": lambda: (probs * jnp.log(probs)).sum(-1),
    }[name]()
    nll = -jnp.log(jnp.take_along_axis(probs, targets[..., None], -1)[..., 0])
    return nll, jnp.log(jnp.exp(logits).sum(-1)), logits.argmax(-1) == targets, cal


@pytest.mark.parametrize("kind", DECODERS)
def test_values_and_gradients_equal_the_full_logits(kind):
    """Chunked (13 positions in chunks of 4) and in one piece; in the loss every position has a
    weight of its own."""
    config, lora = DECODERS[kind]
    graphdef, state = nnx.split(tiny_decoder(config=config, lora=lora))
    hidden, targets = positions(13)

    def outputs(state, hidden, name, chunk):
        decoder = nnx.merge(graphdef, state)
        if chunk is None:
            return naive(decoder, hidden, targets, name)
        stats = row_stats(decoder.head(), hidden, targets, METHODS[name], chunk=chunk)
        return stats.nll, stats.logsumexp, stats.is_argmax > 0, stats.cal

    def loss(state, hidden, name, chunk):
        nll, logsumexp, argmax, cal = outputs(state, hidden, name, chunk)
        weight = jnp.linspace(-1, 1, 13)[:, None] / 13
        value = jnp.sum(weight * nll) + jnp.sum(weight**2 * logsumexp)
        return value if cal is None else value + jnp.sum(weight * cal) / VOCAB

    @jax.jit
    def all_of_them(state, hidden):
        return {
            f"{name} {chunk}": (
                outputs(state, hidden, name, chunk),
                jax.grad(loss, argnums=(0, 1))(state, hidden, name, chunk),
            )
            for name in METHODS
            for chunk in (None, 4, *([128] if name == "ls" else []))
        }

    results = all_of_them(state, hidden)
    for key, (values, gradients) in results.items():
        wanted = results[f"{key.split()[0]} None"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            (values, gradients),
            wanted,
        )
        assert np.asarray(gradients[1]).any()


def vocabulary_sized(method: Term | Literal["plain"] | None) -> dict[str, int]:
    """How often each operation yields or reads `[positions, vocab]` in value and gradient."""
    graphdef, state = nnx.split(tiny_decoder())
    hidden, targets = positions(6)

    def loss(state):
        stats = row_stats(nnx.merge(graphdef, state).head(), hidden, targets, method)
        return jnp.sum(stats.nll) + (0.0 if method is None else jnp.sum(stats.cal))

    def plain_cross_entropy(state):
        logits = nnx.merge(graphdef, state).logits(hidden[:, 0])
        chosen = jnp.sum(jnp.where(jnp.arange(VOCAB) == targets, logits, 0.0), -1)
        return jnp.sum(jax.nn.logsumexp(logits, -1) - chosen)

    counts: dict[str, int] = {}
    function = plain_cross_entropy if method == "plain" else loss
    count_equations(jax.make_jaxpr(jax.grad(function))(state).jaxpr, counts)
    return counts


def count_equations(jaxpr, counts):
    for equation in jaxpr.eqns:
        inner = [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
        for one in inner:
            count_equations(getattr(one, "jaxpr", one), counts)
        shapes = [getattr(v.aval, "shape", ()) for v in (*equation.invars, *equation.outvars)]
        if not inner and any(s[-1:] == (VOCAB,) and len(s) == 2 and s[0] == 6 for s in shapes):
            counts[equation.primitive.name] = counts.get(equation.primitive.name, 0) + 1


def test_without_a_term_nothing_is_computed_for_one():
    """Beside plain cross-entropy only the maximum that tells whether the target is the argmax."""
    sft, plain = vocabulary_sized(None), vocabulary_sized("plain")
    more = {k: n - plain.get(k, 0) for k, n in sft.items() if n != plain.get(k, 0)}
    assert set(more) <= {"reduce_max", "stop_gradient"}, more
    assert sum(more.values()) <= 2
    for name in ("ls", "mbls", "ecp"):
        assert sum(vocabulary_sized(METHODS[name]).values()) > sum(sft.values())


def test_chunks_are_computed_where_their_positions_lie():
    """64 positions on 8 devices in chunks of 32: each device forms 4 x vocab logits a chunk and
    asks no other device for hidden states."""
    mesh = make_mesh(MeshConfig())
    graphdef, state = nnx.split(tiny_decoder(mesh=mesh))
    hidden, targets = positions(64)
    hidden = jax.device_put(hidden, named_sharding(mesh, ("batch", None, None)))
    targets = jax.device_put(targets, named_sharding(mesh, ("batch", None)))

    def gradient(state, hidden):
        def loss(hidden):
            return jnp.sum(
                row_stats(nnx.merge(graphdef, state).head(), hidden, targets, chunk=32).nll
            )

        return jax.grad(loss)(hidden)

    text = jax.jit(gradient).lower(state, hidden).compile().as_text()
    assert f"f32[4,{VOCAB}]" in text
    assert f"f32[32,{VOCAB}]" not in text and f"f32[8,{VOCAB}]" not in text
    assert "all-gather" not in text


def test_dropout_on_the_head_is_drawn_per_position():
    decoder = tiny_decoder(lora=replace(LORA, lora_dropout=0.5))
    hidden, targets = positions(1)
    hidden, targets = np.repeat(hidden, 12, 0), np.repeat(targets, 12, 0)
    for chunk in (4, 128):
        run = jax.jit(
            lambda key, chunk=chunk: row_stats(decoder.head(), hidden, targets, None, key, chunk)
        )
        nll = run(jax.random.key(0)).nll
        assert len(np.unique(np.asarray(nll).round(5))) > 8
