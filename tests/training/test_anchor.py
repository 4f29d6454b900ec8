"""Fine-tuning that is held on questions without answers."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.posthoc import fit_temperature
from cogcalib_jax.method.config import AnchorConfig, MethodConfig
from cogcalib_jax.method.loss import Faults
from cogcalib_jax.training import loop as loop_module
from cogcalib_jax.training.finetune import finetune, style_phase
from cogcalib_jax.training.log import broken_update, require_tolerable
from cogcalib_jax.training.state import AnchorRows, Phase, anchors_with_start
from cogcalib_jax.training.step import StepFaults
from tests.inference.tiny import VOCAB, full_logits, log_softmax, questions
from tests.training.small_trainer import (
    TRAINING,
    Killed,
    checksums,
    lines,
    lora,
    same_bits,
    trainer,
)

COLS = MethodConfig(name="cols", weight=0.5, space="options").resolve()
QUESTIONS = questions(6, seed=9, options=(3, 4), longest=8)


def anchors(**given):
    config = AnchorConfig(**({"path": "anchors.csv", "rows_per_step": 4} | given))
    return AnchorRows(config, QUESTIONS, "hash")


def held(training=TRAINING, dropout=True, **given):
    made = trainer(training)
    trainable = replace(made.trainable, dropout=dropout, anchors=anchors(**given))
    return replace(made, trainable=trainable)


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    return folder, style_phase(trainer(), lora(), folder)


@pytest.fixture(scope="module")
def whole(style, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, finetune(held(), COLS, style[1], style[0], folder)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("space", ["options", "vocab"])
def test_beliefs_are_those_of_the_start_where_the_answer_would_begin(space, temperature, tmp_path):
    made = anchors(term=f"kl(top={VOCAB})")
    trainable = trainer().trainable
    found = anchors_with_start(made, trainable, space, lora(), 4, tmp_path, temperature).start
    decoder = trainable.model.merge(lora())
    for i, row in enumerate(QUESTIONS):
        logits = full_logits(decoder, row.prompt_ids)[-1] / temperature
        if space == "options":
            wanted = log_softmax(logits[[ids[0] for ids in row.completion_ids]])
            got = found.log_p[i, 0, : len(wanted)]
        else:
            wanted, got = log_softmax(logits), np.empty(VOCAB)
            got[found.ids[i, 0]] = found.log_p[i, 0]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_terms_that_do_not_ask_have_no_beliefs_computed(tmp_path):
    made = anchors(term="ecp")
    assert anchors_with_start(made, trainer().trainable, "vocab", lora(), 4, tmp_path) is made


def test_a_large_weight_holds_the_model_where_it_was_on_questions_it_never_learns(style, tmp_path):
    longer = replace(TRAINING, epochs=12, refit_every=30, validate_every=30)
    sizes = {}
    for weight in (0.0, 10.0):
        folder = tmp_path / str(weight)
        made = held(longer, dropout=False, weight=weight)
        finetune(made, COLS, style[1], style[0], folder)
        found = [line["anchor"] for line in lines(folder, phase="finetune")]
        assert found[0] == pytest.approx(0.0, abs=1e-5)
        sizes[weight] = np.mean(found[15:])
    assert sizes[10.0] < 0.1 * sizes[0.0], sizes


def test_a_tempered_start_is_at_the_temperature_of_the_calibration_questions(style, tmp_path):
    made = held(dropout=False, tempered=True, rows_per_step=len(QUESTIONS))
    predictor = made.predictor
    temperature = fit_temperature(predictor(style[1], made.splits["calibration"]))
    assert abs(np.log(temperature)) > 0.1
    finetune(made, COLS, style[1], style[0], tmp_path)
    start = predictor(style[1], QUESTIONS)
    wanted = []
    for scores, exists in zip(start.option_scores, start.mask, strict=True):
        p, q = log_softmax(scores[exists]), log_softmax(scores[exists] / temperature)
        wanted.append(np.sum(np.exp(q) * (q - p)))
    first = lines(tmp_path, phase="finetune")[0]["anchor"]
    assert first == pytest.approx(np.mean(wanted), rel=1e-4)


def test_style_adaptation_is_not_held_and_its_start_may_be_shared(style, tmp_path):
    assert same_bits(style_phase(held(), lora(), style[0]), style[1])
    assert all("anchor" not in line for line in lines(style[0]))


def test_without_anchors_lines_and_parameters_are_those_of_weight_nothing(style, tmp_path):
    """Weight 0 measures and adds nothing; anchors draw no number that examples would have drawn."""
    plain = finetune(trainer(), COLS, style[1], style[0], tmp_path / "plain")
    measured = finetune(held(weight=0.0), COLS, style[1], style[0], tmp_path / "measured")
    for a, b in zip(
        lines(tmp_path / "plain", phase="finetune"),
        lines(tmp_path / "measured", phase="finetune"),
        strict=True,
    ):
        assert b.pop("anchor") >= 0
        assert a.keys() == b.keys()
        for name in ("loss", "ce", "cal", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)
    assert plain.threshold == pytest.approx(measured.threshold, rel=1e-4)


@pytest.mark.parametrize("at", [1, 3])
def test_killed_and_resumed_is_the_run_that_was_not(at, style, whole, tmp_path, monkeypatch):
    batches = loop_module.anchor_batches

    def killed(trainable, anchors, stream, step):
        if step == at:
            raise Killed
        return batches(trainable, anchors, stream, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop_module, "anchor_batches", killed)
        finetune(held(), COLS, style[1], style[0], tmp_path)
    resumed = finetune(held(), COLS, style[1], style[0], tmp_path)
    folder, result = whole
    assert checksums(tmp_path) == checksums(folder)
    assert same_bits(resumed.lora, result.lora)
    assert lines(tmp_path) == lines(folder)


def test_a_checkpoint_of_other_anchor_rows_is_refused(style, whole):
    folder, _ = whole
    trainable = held().trainable
    other = replace(trainable, anchors=replace(trainable.anchors, data_hash="other"))
    for changed, told in ((other, "'other'"), (replace(trainable, anchors=None), "None")):
        made = replace(trainer(), trainable=changed)
        with pytest.raises(UserError, match=f"anchor_data is {told} but it was started with"):
            finetune(made, COLS, style[1], style[0], folder)


def test_an_anchor_that_is_not_finite_is_named(tmp_path):
    phase = Phase(
        name="finetune",
        method=COLS,
        encoded=QUESTIONS,
        steps=1,
        schedule=optax.constant_schedule(1.0),
        save_at=frozenset(),
        folder=tmp_path,
        anchors=anchors(term="ls"),
    )
    healthy = jnp.zeros(2, bool)
    faults = StepFaults(jnp.arange(2), Faults(healthy, healthy), jnp.int32(1))
    values = {"loss": np.nan, "anchor": np.nan, "grad_norm": np.nan}
    broken = broken_update(faults, phase, values)
    assert broken.terms == ("anchor",)
    with pytest.raises(UserError, match="the mean of ls over the anchor rows not finite; lower"):
        require_tolerable(broken, 0, phase, TRAINING, values)
