"""The gated loss, example by example, against its definition in plain numpy."""

from dataclasses import replace
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cogcalib_jax.inference.forward import losses_at, scored_hidden
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.loss import gated_loss
from cogcalib_jax.training.step import batch_sums
from tests.inference.tiny import (
    full_logits,
    log_softmax,
    one_batch,
    questions,
    tiny_decoder,
)

SINGLE, SEVERAL = questions(9), questions(9, tokens=3)
GATES = (
    "all",
    "adaptive",
    "frozen_threshold",
    "unknown",
    "frozen_labels",
    "frozen_random",
    "oracle",
)
WEIGHT = 0.7
MARGIN = 2.0


def methods(spaces):
    kinds = list(product(("ls", "mbls", "ecp"), spaces, ("mean", "sum")))
    none = MethodConfig(term="none", gate="all")
    specs = {
        (term, how): f"{term}({f'margin={MARGIN}, ' if term == 'mbls' else ''}reduction={how})"
        for term, _, how in kinds
    }
    return [none] + [
        MethodConfig(term=specs[term, how], gate="all", space=space) for term, space, how in kinds
    ]


# (questions, loss, method): options space needs single tokens, where tokens of an answer are one.
CASES = [
    *product(
        ["single"], [LossConfig("vocab"), LossConfig("options")], methods(["vocab", "options"])
    ),
    *product(
        ["several"], [LossConfig("vocab", "mean"), LossConfig("vocab", "sum")], methods(["vocab"])
    ),
]


def numpy_term(logits, method):
    """One row of logits over the classes that exist."""
    p = np.exp(log_softmax(logits))
    values = {
        "ls": -np.log(p),
        "mbls": np.maximum(logits.max() - logits - MARGIN, 0),
        "ecp": p * np.log(p),
    }[method.term.partition("(")[0]]
    return values.mean() if "reduction=mean" in method.term else values.sum()


def numpy_example(decoder, row, loss, method):
    """(nll, correct, cal) of one question from the full logits of its own, unpadded text."""
    completion = row.completion_ids[row.answer]
    logits = full_logits(decoder, (*row.prompt_ids, *completion)[:-1])[len(row.prompt_ids) - 1 :]
    only_options = [ids[0] for ids in row.completion_ids]
    combine = np.mean if loss.tokens == "mean" else np.sum
    if loss.space == "options":
        scores = logits[0][only_options]
        nll, correct = -log_softmax(scores)[row.answer], scores.argmax() == row.answer
    else:
        nll = combine([-log_softmax(z)[t] for z, t in zip(logits, completion, strict=True)])
        correct = logits.argmax(-1).tolist() == list(completion)
    if method.term == "none":
        return nll, correct, None
    if method.space == "options":
        return nll, correct, numpy_term(logits[0][only_options], method)
    return nll, correct, combine([numpy_term(z, method) for z in logits])


@cache
def computed(kind):
    """Example losses of every case over one kind of questions, compiled together."""
    rows = SINGLE if kind == "single" else SEVERAL
    graphdef, state = nnx.split(tiny_decoder())
    batch = one_batch(rows)
    cases = [(loss, method) for name, loss, method in CASES if name == kind]

    @jax.jit
    def run(state, batch):
        decoder = nnx.merge(graphdef, state)
        hidden, _ = scored_hidden(decoder, batch, None)
        return [
            losses_at(decoder.head(), hidden, batch, loss, method.build(), None)
            for loss, method in cases
        ]

    return batch.row, dict(zip(cases, run(state, batch), strict=True))


@pytest.mark.parametrize("kind", ["single", "several"])
def test_nll_correctness_and_terms_equal_numpy(kind):
    decoder = tiny_decoder()
    row_numbers, results = computed(kind)
    rows = SINGLE if kind == "single" else SEVERAL
    for (loss, method), got in results.items():
        wanted = [numpy_example(decoder, rows[r], loss, method) for r in row_numbers]
        nll, correct, cal = zip(*wanted, strict=True)
        np.testing.assert_allclose(got.nll, nll, rtol=1e-4, err_msg=f"{loss} {method}")
        assert got.correct.tolist() == list(map(float, correct))
        if method.term == "none":
            assert got.cal is None
        else:
            np.testing.assert_allclose(got.cal, cal, rtol=1e-4, atol=1e-4, err_msg=f"{method}")


@pytest.mark.parametrize("normalise", [False, True])
def test_the_gate_decides_whose_loss_gets_the_term(normalise):
    """Every gate but random, example by example: one-hot example weights pick each one's loss."""
    rng = np.random.default_rng(0)
    nll, cal = rng.gamma(2, 1, (2, 11)).astype(np.float32)
    labels = rng.integers(0, 2, 11).astype(np.float32)
    threshold = float(np.sort(nll)[5])  # a tie: an NLL of exactly the threshold is known
    known = nll <= threshold
    masks = {
        "all": np.ones(11),
        "adaptive": known,
        "frozen_threshold": known,
        "unknown": ~known,
        "frozen_labels": labels,
        "frozen_random": labels,
        "oracle": labels,
    }
    for gate in GATES:
        config = MethodConfig(term="ls", gate=gate, weight=WEIGHT, normalise=normalise)
        method = config.build()

        def sums(weight, method=method):
            at = jnp.float32(threshold)
            return gated_loss(nll, cal, method, at, labels, weight, jax.random.key(0))

        got = jax.vmap(sums)(jnp.eye(11))
        strength = WEIGHT * np.asarray(masks[gate], float)
        wanted = (nll + strength * cal) / (1 + strength if normalise else 1)
        np.testing.assert_allclose(got.loss, wanted, rtol=1e-5, err_msg=gate)
        np.testing.assert_allclose(got.ce, nll, rtol=1e-6)
        np.testing.assert_array_equal(got.gated, np.asarray(masks[gate], float))
        np.testing.assert_array_equal(got.known, known.astype(float))
        whole = sums(jnp.ones(11))
        np.testing.assert_allclose(whole.loss, wanted.sum(), rtol=1e-5)
        assert whole.examples == 11


def test_the_random_gate_flags_as_many_as_the_adaptive_one_but_others():
    rng = np.random.default_rng(1)
    nll = rng.gamma(2, 1, 16).astype(np.float32)
    real = (np.arange(16) < 13).astype(np.float32)
    threshold = jnp.float32(np.median(nll))
    method = MethodConfig(term="ls", gate="random", weight=WEIGHT).build()
    known = float(((nll <= np.median(nll)) & (real > 0)).sum())
    gated = set()
    for seed in range(8):
        # A term of powers of two spells out who was flagged.
        cal = 2.0 ** np.arange(16, dtype=np.float32)
        sums = gated_loss(nll, cal, method, threshold, nll * 0, real, jax.random.key(seed))
        assert sums.gated == known
        gated.add(round(float(sums.loss - sums.ce) / WEIGHT))
    assert len(gated) > 4
    assert all(flagged < 2**13 for flagged in gated)


def loss_and_gradient(rows, method, threshold=4.3, batch=None, labels=None):
    """Summed loss and LoRA gradient of one batch, through the decoder."""
    graphdef, lora, frozen = nnx.split(tiny_decoder(), nnx.LoRAParam, ...)
    batch = one_batch(rows) if batch is None else batch
    labels = np.zeros(len(batch.row), np.float32) if labels is None else labels

    def total(lora, batch):
        decoder = nnx.merge(graphdef, lora, frozen)
        weighted = replace(method, weight=WEIGHT).build()
        at = jnp.float32(threshold)
        sums = batch_sums(
            decoder, batch, labels, weighted, LossConfig(), at, jax.random.key(0), False
        )
        return sums.loss, sums._replace(faults=None)  # of which there are as many as rows

    (_, sums), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(lora, batch)
    return sums, gradient


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * max(1, np.abs(y).max())
        ),
        a,
        b,
    )


def test_the_gate_passes_no_gradient():
    """The gradient with the mask computed from the NLL is that with the same mask as constants."""
    rows = SINGLE
    adaptive = MethodConfig(term="ecp", gate="adaptive").resolve()
    batch = one_batch(rows)
    nll = computed("single")[1][(LossConfig("vocab"), methods(["vocab"])[0])].nll
    known = (np.asarray(nll) <= np.median(nll)).astype(np.float32)
    assert 0 < known.sum() < len(known)
    sums, gradient = loss_and_gradient(rows, adaptive, threshold=float(np.median(nll)))
    fixed = replace(adaptive, gate="oracle")
    fixed_sums, fixed_gradient = loss_and_gradient(rows, fixed, batch=batch, labels=known)
    assert sums.gated == known.sum()
    assert_close(sums.loss, fixed_sums.loss)
    assert_close(gradient, fixed_gradient)


def test_an_example_has_the_same_loss_in_any_batch():
    """Alone in a longer bucket, among rows that only fill the batch, or with all others."""
    rows = SEVERAL
    method = MethodConfig(term="ls", gate="adaptive").resolve()
    graphdef, state = nnx.split(tiny_decoder())

    @jax.jit
    def losses(state, batch):
        decoder = nnx.merge(graphdef, state)
        hidden, _ = scored_hidden(decoder, batch, None)
        return losses_at(decoder.head(), hidden, batch, LossConfig(), method.build(), None)

    together = one_batch(rows)
    wanted = losses(state, together)
    for position, row in enumerate(together.row):
        alone = one_batch(type(rows)(rows[row : row + 1]), size=3, bucket=32)
        got = losses(state, alone)
        assert alone.weight.tolist() == [1, 0, 0]
        assert_close((got.nll[0], got.cal[0]), (wanted.nll[position], wanted.cal[position]))


def test_rows_that_fill_a_batch_and_padding_change_neither_loss_nor_gradient():
    method = MethodConfig(term="ls", gate="adaptive", space="options").resolve()
    sums, gradient = loss_and_gradient(SINGLE, method)
    padded = one_batch(SINGLE, size=14, bucket=32)
    padded_sums, padded_gradient = loss_and_gradient(SINGLE, method, batch=padded)
    assert 0 < sums.gated < sums.examples == len(SINGLE)
    assert_close(padded_sums, sums)
    assert_close(padded_gradient, gradient)
