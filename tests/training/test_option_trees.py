"""Fine-tuning over options of several tokens: loss, threshold, terms and what is logged."""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.console import progress_bar
from cogcalib_jax.errors import FieldError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.method.config import AnchorConfig, LossConfig, MethodConfig
from cogcalib_jax.method.gates import fit_threshold
from cogcalib_jax.method.loss import gated_loss
from cogcalib_jax.training import log as training_log
from cogcalib_jax.training.checkpoint import CheckpointConfig
from cogcalib_jax.training.finetune import finetune, make_trainer, style_phase
from cogcalib_jax.training.loop import train_stream
from cogcalib_jax.training.state import AnchorRows, Phase, Trainable
from cogcalib_jax.training.step import StepFaults, StepMetrics
from cogcalib_jax.training.storage import Memory
from tests.inference.tiny import log_softmax, option_logprob, questions
from tests.models.small import one_device
from tests.training.small_trainer import TRAINING, lines, model

SIZES = {"style": 8, "train": 16, "calibration": 12, "validation": 8}
STEADY = replace(TRAINING, schedule="constant", warmup_fraction=0.0, max_steps=2, style_steps=1)
COLS = MethodConfig(name="cols", weight=0.5, space="options").resolve()


@cache
def splits():
    return {
        name: questions(n, seed=seed, options=(3, 4), longest=6, tokens=3)
        for seed, (name, n) in enumerate(SIZES.items())
    }


@cache
def trainer(**loss):
    trainable = Trainable(
        model=model()[0],
        mesh=one_device(),
        training=STEADY,
        loss=LossConfig(space="options", **loss),
        checkpoint=CheckpointConfig(every=1),
        dropout=False,
        seed=0,
        identity={"seed": 0, "training": asdict(STEADY)},
        made_from={"base": "tiny"},
    )
    return make_trainer(trainable, EvaluationConfig(batch_size=12), splits())


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    return folder, style_phase(trainer(), model()[1], folder)


def by_hand(state, rows):
    """NLL, correctness and the right option's NLL per token, from every option's own text."""
    decoder = trainer().trainable.model.merge(state)
    found = []
    for row in rows:
        tokens = np.array([len(ids) for ids in row.completion_ids])
        logprobs = np.array([option_logprob(decoder, row, k) for k in range(len(tokens))])
        log_p = log_softmax(logprobs / tokens)
        gold = -logprobs[row.answer] / tokens[row.answer]
        found.append((-log_p[row.answer], log_p.argmax() == row.answer, gold))
    return map(np.array, zip(*found, strict=True))


def test_the_threshold_separates_right_from_wrong_options(style, tmp_path):
    finetune(trainer(), COLS, style[1], style[0], tmp_path)
    first = lines(tmp_path, phase="refit")[0]
    nll, correct, _ = by_hand(style[1], splits()["calibration"])
    wanted = fit_threshold(nll, correct)
    assert first["threshold"] == pytest.approx(wanted.threshold, rel=1e-4)
    assert first["correct_fraction"] == pytest.approx(correct.mean())
    assert 0 < first["correct_fraction"] < 1
    nll, correct, gold = by_hand(style[1], splits()["validation"])
    start = lines(tmp_path, phase="validation")[0]
    assert start["nll"] == pytest.approx(nll.mean(), rel=1e-4)
    assert start["accuracy"] == pytest.approx(correct.mean())
    assert start["gold_nll"] == pytest.approx(gold.mean(), rel=1e-4)
    # The first update sees the start.
    update = lines(tmp_path, phase="finetune")[0]
    rows = train_stream(trainer().trainable, splits()["train"], 2, COLS).rows(0)
    nll, _, gold = by_hand(style[1], [splits()["train"][row] for row in rows])
    assert update["ce"] == pytest.approx(nll.mean(), rel=1e-4)
    assert update["gold_nll"] == pytest.approx(gold.mean(), rel=1e-4)
    assert update["known_fraction"] == pytest.approx((nll <= first["threshold"]).mean())


@pytest.mark.parametrize("space", ["options", "vocab"])
def test_a_term_compares_with_the_start(space, style, tmp_path):
    method = MethodConfig(term="kl", gate="all", weight=1.0, space=space).resolve()
    finetune(trainer(lm_weight=1.0), method, style[1], style[0], tmp_path)
    first, last = lines(tmp_path, phase="finetune")
    assert abs(first["cal"]) < 1e-5 < last["cal"]
    assert first["loss"] == pytest.approx(first["ce"] + first["gold_nll"], rel=1e-4)


def test_anchors_may_have_options_of_several_tokens(style, tmp_path):
    config = AnchorConfig(path="anchors.csv", rows_per_step=4)
    anchors = AnchorRows(config, questions(6, seed=9, options=(4,), longest=6, tokens=3), "hash")
    made = replace(trainer(), trainable=replace(trainer().trainable, anchors=anchors))
    finetune(made, COLS, style[1], style[0], tmp_path)
    first, last = (line["anchor"] for line in lines(tmp_path, phase="finetune"))
    assert abs(first) < 1e-6 < last


def test_rows_hold_all_options_only_where_something_compares_them():
    plain = MethodConfig(name="ls").resolve()
    trainable = replace(trainer().trainable, loss=LossConfig())
    for method, branches in ((plain, False), (replace(plain, space="options"), True)):
        batch = train_stream(trainable, splits()["train"], 2, method).batch(0)
        assert (batch.tree is not None) == branches
    letters = questions(8)
    assert train_stream(trainer().trainable, letters, 2, COLS).batch(0).tree is None


def test_another_rule_scores_batches_and_calibration_questions():
    made = trainer().scored_by("sum")
    mean, total = (
        train_stream(one.trainable, splits()["train"], 2, COLS).batch(0)
        for one in (trainer(), made)
    )
    assert (total.tree.divisor == 1).all() and (mean.tree.divisor > 1).any()
    nll = [one.nll(model()[1], splits()["validation"])[0] for one in (trainer(), made)]
    assert not np.allclose(*nll)


def test_the_right_options_own_nll_can_be_added():
    method = MethodConfig(name="sft").resolve().build()
    nll, gold, weight = jnp.array([1.0, 2.0, 9.0]), jnp.array([3.0, 5.0, 9.0]), jnp.array([1, 1, 0])
    rest = (method, jnp.float32(0), jnp.zeros(3), weight, jax.random.key(0), gold)
    assert float(gated_loss(nll, None, *rest, 0.5).loss) == 3 + 0.5 * 8
    assert float(gated_loss(nll, None, *rest).loss) == 3
    assert float(gated_loss(nll, None, *rest).gold) == 8


@pytest.mark.parametrize("given", [{"lm_weight": 1.0}, {"lm_weight": -1.0, "space": "options"}])
def test_a_weight_that_means_nothing_is_refused(given):
    with pytest.raises(FieldError, match="lm_weight"):
        LossConfig(**given)


@pytest.mark.parametrize(("shares", "warned"), [([0.0, 0.02], False), ([0.0, 0.01], True)])
def test_a_margin_that_nothing_reaches_is_warned_about(shares, warned, monkeypatch):
    said = []
    monkeypatch.setattr(training_log, "warn", said.append)
    method = MethodConfig(term="mbls(margin=40)", space="options").resolve()
    phase = Phase("finetune", method, splits()["train"], 2, lambda step: 0.1, frozenset(), Path())
    log = training_log.StepLog(Memory().journal(Path("metrics.jsonl")), phase, STEADY)
    with progress_bar(2, "", "step") as bar:
        for step, share in enumerate(shares):
            one = np.float32(1.0)
            faults = StepFaults(np.zeros(1, np.int32), None, np.int32(0))
            metrics = StepMetrics(one, one, one, one, one, one, 0, faults, active_fraction=share)
            log.updated(step, metrics, np.float32(0), 8, bar)
        log.flush(bar)
    assert bool(said) == warned
    assert not warned or "method.term is mbls(margin=40), and only 0.5% of the rows" in said[0]
