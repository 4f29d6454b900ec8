"""What each gate's fine-tuning looks at, and when."""

from dataclasses import replace

import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.predictions import prediction_rows
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.method.gates import fit_threshold
from cogcalib_jax.training.finetune import finetune, fixed_labels, style_phase
from cogcalib_jax.training.loop import train_stream
from tests.inference.tiny import full_logits, log_softmax
from tests.training.small_trainer import TRAINING, lines, lora, same_bits, splits, trainer

# The update does not depend on how many there are, so it is compiled once a method.
STEADY = replace(TRAINING, schedule="constant", warmup_fraction=0.0)


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    return folder, style_phase(trainer(), lora(), folder)


def method(**fields):
    return MethodConfig(**({"term": "ls", "weight": 0.5} | fields)).resolve()


def nll_and_correct(state, rows):
    """By definition, from the full logits of each question's text, over its options."""
    decoder = trainer().trainable.model.merge(state)
    nll, correct = [], []
    for row in rows:
        options = [ids[0] for ids in row.completion_ids]
        log_p = log_softmax(full_logits(decoder, row.prompt_ids)[-1][options])
        nll.append(-log_p[row.answer])
        correct.append(log_p.argmax() == row.answer)
    return np.array(nll), np.array(correct)


def test_a_frozen_threshold_is_the_one_fitted_after_style_adaptation(style, tmp_path):
    result = finetune(trainer(STEADY), method(gate="frozen_threshold"), *style[::-1], tmp_path)
    # Frozen, it is never fitted again.
    (fit,) = lines(tmp_path, phase="refit")
    used = {line["threshold"] for line in lines(tmp_path, phase="finetune")}
    assert used == {result.threshold} and result.threshold == pytest.approx(fit["threshold"])
    calibration = splits()["calibration"]
    wanted = fit_threshold(*nll_and_correct(style[1], calibration))
    unstyled = fit_threshold(*nll_and_correct(lora(), calibration))
    assert fit["threshold"] == pytest.approx(wanted.threshold, rel=1e-4)
    assert abs(fit["threshold"] - unstyled.threshold) > 1e-2
    assert (fit["n_known"], fit["n"]) == (wanted.n_known, 24)
    assert fit["tpr"] == pytest.approx(wanted.tpr)


def test_without_style_adaptation_the_start_is_the_fresh_adapter(tmp_path):
    assert style_phase(trainer(replace(TRAINING, style_steps=0)), lora(), tmp_path) is lora()
    assert not any(tmp_path.iterdir())


def test_style_adaptation_is_plain_cross_entropy_without_a_gate(style):
    for line in lines(style[0]):
        assert line["loss"] == line["ce"] and line["cal"] == 0
        assert line["threshold"] is None and line["known_fraction"] == 0


def test_the_oracle_gates_by_what_the_world_knows(style, tmp_path):
    finetune(trainer(STEADY), method(gate="oracle"), *style[::-1], tmp_path)
    train, updates = splits()["train"], lines(tmp_path, phase="finetune")
    stream = train_stream(trainer(STEADY).trainable, train, len(updates), method(gate="oracle"))
    for step, line in enumerate(updates):
        known = [train[row].example.extra["known"] for row in stream.rows(step)]
        assert line["gated_fraction"] == pytest.approx(np.mean(known))


def test_fixed_labels_are_those_of_the_start(style):
    train = splits()["train"]
    nll, _ = nll_and_correct(style[1], train)
    threshold = float(np.median(nll))
    got = fixed_labels(trainer(), method(gate="frozen_labels"), style[1], threshold)
    np.testing.assert_array_equal(got, nll <= threshold)
    drawn = fixed_labels(trainer(), method(gate="frozen_random"), style[1], threshold)
    assert drawn.sum() == got.sum() and (drawn != got).any()
    again = fixed_labels(trainer(), method(gate="frozen_random"), style[1], threshold)
    np.testing.assert_array_equal(drawn, again)
    oracle = fixed_labels(trainer(), method(gate="oracle"), style[1], threshold)
    np.testing.assert_array_equal(oracle, [row.example.extra["known"] for row in train])
    assert not fixed_labels(trainer(), method(gate="adaptive"), style[1], threshold).any()


def test_the_best_adapter_is_the_one_of_the_lowest_validation_nll(style, tmp_path):
    """High learning rate: the validation NLL rises after the first epoch."""
    training = replace(STEADY, learning_rate=0.1, validate_every=1)
    result = finetune(trainer(training), method(gate="all"), *style[::-1], tmp_path)
    nlls = {line["step"]: line["nll"] for line in lines(tmp_path, phase="validation")[1:]}
    best = min(nlls, key=nlls.get)
    assert best < 3 + 5
    assert result.best_epoch == pytest.approx((best - 3) * 8 / 20)
    rows = splits()["validation"]
    for state, wanted in ((result.best_lora, nlls[best]), (result.lora, nlls[8])):
        scored = prediction_rows(trainer().predictor(state, rows), rows)
        assert np.mean([row["nll"] for row in scored]) == pytest.approx(wanted, rel=1e-5)
    assert not same_bits(result.best_lora, result.lora)


def test_dynamics_follow_known_and_unknown_questions_apart(style, tmp_path):
    one = trainer(replace(STEADY, max_steps=1))
    finetune(one, method(gate="oracle"), *style[::-1], tmp_path)
    records = lines(tmp_path, "dynamics.jsonl")
    followed = {"validation": splits()["validation"], "train": splits()["train"][:10]}
    assert {(r["step"], r["data"]) for r in records} == {
        (step, data) for step in (3, 4) for data in followed
    }
    start = {(r["data"], r["group"]): r for r in records if r["step"] == 3}
    for data, rows in followed.items():
        known = np.array([row.example.extra["known"] for row in rows])
        nll, correct = nll_and_correct(style[1], rows)
        for group, mask in (("known", known), ("unknown", ~known)):
            record = start[(data, group)]
            assert record["n"] == mask.sum()
            assert record["nll"] == pytest.approx(nll[mask].mean(), rel=1e-4)
            assert record["accuracy"] == pytest.approx(correct[mask].mean())


def test_a_run_that_diverges_says_so(style, tmp_path):
    """Whether it shows in a step's loss or, after the last update, in the refit."""
    for steps in (1, 4):
        training = replace(STEADY, learning_rate=1e6, weight_decay=1e38, max_steps=steps)
        with pytest.raises(UserError, match="learning_rate"):
            folder = tmp_path / str(steps)
            finetune(trainer(training), method(gate="all"), *style[::-1], folder)
        assert not list((folder / "checkpoints").glob("[0-9]*"))
