"""Fine-tuning on open questions: one gate an example, what validation follows, and a threshold
fitted on generated answers."""

from dataclasses import asdict, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.errors import FieldError
from cogcalib_jax.inference.config import EvaluationConfig, OpenConfig
from cogcalib_jax.inference.open_ended import OpenPredictor
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.method.config import LossConfig, MethodConfig
from cogcalib_jax.method.gates import fit_threshold
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.training.checkpoint import CheckpointConfig
from cogcalib_jax.training.finetune import Trainer, finetune, make_trainer, style_phase
from cogcalib_jax.training.log import quick_metrics
from cogcalib_jax.training.state import Trainable
from cogcalib_jax.training.step import batch_sums
from tests.inference.open_rows import DATA, VOCAB, encoded, open_examples, tokenizer
from tests.inference.tiny import (
    TINY,
    full_logits,
    log_softmax,
    one_batch,
    option_logprob,
    tiny_decoder,
)
from tests.models.small import one_device
from tests.training.small_trainer import TRAINING, lines

EVALUATION = EvaluationConfig(
    batch_size=8, open=OpenConfig(max_new_tokens=4, samples=0, p_true=False)
)


@cache
def decoder():
    return tiny_decoder(config=replace(TINY, vocab_size=VOCAB))


@cache
def model():
    return split_model(decoder())


@cache
def splits():
    sizes = {"style": 8, "train": 16, "calibration": 8, "validation": 8}
    return {
        name: encoded(open_examples(n, seed=seed)) for seed, (name, n) in enumerate(sizes.items())
    }


@cache
def trainer(loss=LossConfig()) -> Trainer:  # noqa: B008 - frozen
    split, mesh = model()[0], one_device()
    trainable = Trainable(
        model=split,
        mesh=mesh,
        training=TRAINING,
        loss=loss,
        checkpoint=CheckpointConfig(),
        dropout=False,
        seed=0,
        identity={"seed": 0, "training": asdict(TRAINING)},
    )
    scores = Predictor(split, mesh, EVALUATION)
    answers = OpenPredictor(split, EVALUATION, DATA, tokenizer(), scores)
    return make_trainer(trainable, EVALUATION, splits(), answers)


def test_the_gate_opens_for_a_whole_answer_or_not_at_all():
    """Against the full logits of every token: the mean over an answer's tokens is compared with
    the threshold, and the term is that mean too."""
    method = MethodConfig(name="cols", weight=0.5).build()
    rows = splits()["calibration"]
    nll, cal = [], []
    for row in rows:
        ids = (*row.prompt_ids, *row.completion_ids[0])
        scored = log_softmax(full_logits(decoder(), ids[:-1]))[len(row.prompt_ids) - 1 :]
        nll.append(-np.mean([scored[t, token] for t, token in enumerate(row.completion_ids[0])]))
        cal.append(np.mean(-scored.mean(-1)))
    threshold = float(np.median(nll))
    known = np.array(nll) <= threshold
    wanted = np.sum(nll) + 0.5 * np.sum(np.array(cal)[known])
    assert 0 < known.sum() < len(rows)
    # A gate for each token would open for other tokens than these.
    threshold = jnp.float32(threshold * (1 + 1e-6))
    labels, key = jnp.zeros(len(rows)), jax.random.key(0)

    def sums(batch):
        return batch_sums(decoder(), batch, labels, method, LossConfig(), threshold, key, False)

    got = jax.jit(sums)(one_batch(rows))
    np.testing.assert_allclose(got.loss, wanted, rtol=1e-4)
    np.testing.assert_allclose([got.ce, got.cal], [np.sum(nll), np.sum(cal)], rtol=1e-4)
    assert float(got.gated) == known.sum()


@pytest.mark.parametrize("tokens", ["mean", "sum"])
def test_validation_follows_the_probability_of_the_reference(tokens):
    rows = splits()["validation"]
    belief = trainer(LossConfig(tokens=tokens)).belief(model()[1], rows)
    logprobs = np.array([option_logprob(decoder(), row, 0) for row in rows])
    np.testing.assert_allclose(belief.nll, -logprobs, rtol=1e-4)
    np.testing.assert_allclose(belief.confidence, np.exp(logprobs), rtol=1e-3)
    numbers = quick_metrics(belief, 15)
    assert numbers["nll"] == pytest.approx(-logprobs.mean(), rel=1e-4)
    # No confidence in the model's own answer is known without generating it.
    assert numbers["ece"] is numbers["brier"] is numbers["auroc"] is None


def test_the_threshold_may_be_fitted_on_generated_answers():
    """What the model says becomes an alias of every other question: right by exact match, though
    the reference is another."""
    made = trainer(LossConfig(correct="exact_match"))
    rows = splits()["calibration"]
    said = made.answers.answers(model()[1], rows).texts
    changed = [
        replace(row, example=replace(row.example, aliases=(*row.example.aliases, text)))
        if i % 2
        else row
        for i, (row, text) in enumerate(zip(rows, said, strict=True))
    ]
    with_aliases = replace(made, splits=made.splits | {"calibration": type(rows)(changed)})
    fit = with_aliases.refit(model()[1])
    nll = [-option_logprob(decoder(), row, 0) / len(row.completion_ids[0]) for row in rows]
    wanted = fit_threshold(np.array(nll), np.arange(8) % 2 == 1)
    assert fit.n == 8 and fit.n_known == wanted.n_known
    assert fit.threshold == pytest.approx(wanted.threshold, rel=1e-4)
    assert (fit.tpr, fit.tnr) == (wanted.tpr, wanted.tnr)
    # The cheap rule sees no right answer there.
    assert trainer().refit(model()[1]).n_known == 0


def test_it_trains_and_keeps_the_adapter_with_the_likeliest_references(tmp_path):
    made = trainer()
    start = style_phase(made, model()[1], tmp_path / "style")
    method = MethodConfig(name="cols").resolve()
    result = finetune(made, method, start, tmp_path / "style", tmp_path / "run")
    validations = lines(tmp_path / "run", phase="validation")
    assert validations[-1]["nll"] < validations[0]["nll"]
    best = min(validations[1:], key=lambda line: line["nll"])
    rows = splits()["validation"]
    assert made.belief(result.best_lora, rows).nll.mean() == pytest.approx(best["nll"], rel=1e-5)
    assert all(line["ece"] is None for line in validations)


def test_exact_match_has_no_meaning_over_options():
    with pytest.raises(FieldError, match="exact_match is for open questions"):
        LossConfig(space="options", correct="exact_match")
