"""Losses and gradients that are not finite: which examples, which term, what stays untouched."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.inference import chunked_loss
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.parameters import split_model
from cogcalib_jax.sharding import MeshConfig, make_mesh
from cogcalib_jax.training import loop as loop_module
from cogcalib_jax.training.log import SKIPPED_IN_A_ROW
from cogcalib_jax.training.loop import jit_step, micro_batches, run_phase, train_stream
from cogcalib_jax.training.state import Phase, begin
from cogcalib_jax.training.storage import Journal
from tests.inference.tiny import tiny_decoder
from tests.training.small_trainer import TRAINING, Killed, lines, lora, same_bits, splits, trainer

COLS = MethodConfig(name="cols", weight=0.5).resolve()
STEPS = 5
# What an example's label makes of it here: cross-entropy, term, or the gradient alone breaks.
WELL, CE, CAL, GRADIENT = range(4)
TERMS = {CE: "ce", CAL: "cal", GRADIENT: "gradient"}


@pytest.fixture(scope="module", autouse=True)
def breakable():
    """Labels, of which the adaptive gate makes no use, say what breaks: they are traced, so that
    one compiled step serves all faults."""
    whole = chunked_loss.gated_loss

    def broken(nll, cal, method, threshold, labels, *rest):
        nll = jnp.where(labels == CE, jnp.inf, nll)
        cal = jnp.where(labels == CAL, jnp.nan, cal)
        # The root of zero is zero, its slope is infinite.
        at_zero = jnp.where(labels == GRADIENT, nll - jax.lax.stop_gradient(nll), 1.0)
        nll = nll + jnp.where(labels == GRADIENT, jnp.sqrt(at_zero), 0.0)
        return whole(nll, cal, method, threshold, labels, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_loss, "gated_loss", broken)
        yield


def phase(folder):
    return Phase(
        name="finetune",
        method=COLS,
        encoded=splits()["train"],
        steps=STEPS,
        schedule=lambda step: 1e-2 / (1 + step),
        save_at=frozenset({2, 4}),
        folder=folder,
        first_step=100,
    )


def trainable(nonfinite="skip"):
    return trainer(replace(TRAINING, nonfinite=nonfinite)).trainable


def labels_with(fault, *rows):
    labels = np.full(len(splits()["train"]), WELL)
    labels[list(rows)] = fault
    return labels


def train(folder, labels, nonfinite="skip"):
    setting, one = trainable(nonfinite), phase(folder)
    progress = begin(setting, one, lora(), 0.0, labels)
    journals = [Journal(folder / "metrics.jsonl")]
    return run_phase(setting, one, progress, journals, lambda progress, step: progress)


def rows_of(step):
    return train_stream(trainable(), splits()["train"], STEPS, COLS).rows(step)


@pytest.mark.parametrize("fault", TERMS)
def test_a_run_stops_and_names_step_examples_and_term(fault, tmp_path):
    broken = rows_of(1)[2]
    first = min(step for step in range(STEPS) if broken in rows_of(step))
    with pytest.raises(UserError) as error:
        train(tmp_path, labels_with(fault, broken), "stop")
    text = str(error.value)
    assert f"step {100 + first + 1} (finetune, update {first + 1})" in text
    assert {CE: "cross-entropy not", CAL: "term ls not", GRADIENT: "the gradient is"}[fault] in text
    (line,) = lines(tmp_path, phase="nonfinite")
    ids = {f"q{row}" for row in rows_of(first)}
    # Of a gradient alone it is not known which example broke it.
    assert set(line["examples"]) == (ids if fault == GRADIENT else {f"q{broken}"})
    assert line["terms"] == [TERMS[fault]] and line["step"] == 101 + first
    assert all(name in text for name in line["examples"])
    # Nothing that came after the fault was saved.
    saved = (tmp_path / "checkpoints").glob("[0-9]*")
    assert all(int(step.name) <= first for step in saved)


@pytest.mark.parametrize(("mesh", "accumulation"), [((1, 1, 1), 1), ((2, 2, 2), 2)], ids=str)
@pytest.mark.parametrize("fault", TERMS)
def test_a_skipped_update_changes_nothing_but_its_count(mesh, accumulation, fault):
    step, state, batch = stepper(mesh, accumulation)
    before = jax.device_get(state())
    rows = rows_of(0)
    after, metrics = step(state(), *batch(fault, rows[1], rows[6]))
    assert same_bits(before.lora, after.lora) and same_bits(before.opt_state, after.opt_state)
    counts = (after.step, after.skipped, after.skipped_in_a_row, metrics.skipped)
    assert [int(count) for count in counts] == [1, 1, 1, 1]
    faults = metrics.faults
    assert np.asarray(faults.row).tolist() == rows
    for of, flags in zip((CE, CAL), faults.of, strict=True):
        found = {row for row, flag in zip(rows, np.asarray(flags), strict=True) if flag}
        assert found == ({rows[1], rows[6]} if of == fault else set())
    # The next update is made from what was there before.
    updated, metrics = step(after, *batch(WELL))
    assert not same_bits(before.lora, updated.lora)
    counts = (updated.step, updated.skipped, updated.skipped_in_a_row, metrics.skipped)
    assert [int(count) for count in counts] == [2, 1, 0, 1]
    assert {int(x) for x in jax.tree.leaves(updated.opt_state) if x.dtype == jnp.int32} == {1}


@cache
def stepper(mesh, accumulation):
    """(step, fresh state, (fault, rows) -> the rest of its arguments) on a mesh of these sizes."""
    setting = trainable()
    setting = replace(setting, training=replace(TRAINING, accumulation=accumulation))
    start = lora()
    if mesh != (1, 1, 1):
        spread = make_mesh(MeshConfig(*mesh))
        model, start = split_model(tiny_decoder(mesh=spread))
        setting = replace(setting, model=model, mesh=spread, dropout=False)
    one = phase(None)
    stream = train_stream(setting, one.encoded, STEPS, one.method)
    compiled = jit_step(setting, one.schedule, start)
    gated = (setting.scalar(0.0), jax.tree.map(setting.scalar, replace(COLS, weight=0.5).build()))

    def state():
        return begin(setting, one, start, 0.0, np.zeros(20)).state

    def batch(fault, *rows):
        labels = labels_with(fault, *rows).astype(np.float32)
        _, tokens, labels = micro_batches(setting, stream, 0, labels)
        return setting.model.frozen, tokens, labels, *gated, jax.random.key(0)

    return compiled, state, batch


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    """A phase in which one example breaks whenever it comes."""
    folder = tmp_path_factory.mktemp("skipped")
    broken = rows_of(1)[0]
    return folder, broken, train(folder, labels_with(CE, broken))


def test_what_was_skipped_is_counted_and_the_learning_rate_follows_the_updates(skipped):
    folder, broken, progress = skipped
    without = [step for step in range(STEPS) if broken in rows_of(step)]
    assert int(progress.state.skipped) == len(without) > 0
    found = lines(folder, phase="nonfinite")
    assert [line["step"] for line in found] == [101 + step for step in without]
    assert [line["skipped"] for line in found] == list(range(1, len(without) + 1))
    made = 0
    for step, line in enumerate(lines(folder, phase="finetune")):
        assert line["lr"] == pytest.approx(1e-2 / (1 + made))
        assert (line["loss"] is None) == (step in without)
        made += step not in without


def test_a_run_with_skipped_updates_resumes_bit_for_bit(skipped, tmp_path, monkeypatch):
    whole, broken, progress = skipped
    labels = labels_with(CE, broken)
    batches = loop_module.micro_batches

    def killed(setting, stream, step, *args):
        if step == 3:
            raise Killed
        return batches(setting, stream, step, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop_module, "micro_batches", killed)
        train(tmp_path, labels)
    resumed = train(tmp_path, labels)
    assert same_bits(progress.state, resumed.state)
    assert lines(tmp_path) == lines(whole)


def test_updates_that_break_one_after_the_other_stop_the_run(tmp_path):
    everything = labels_with(CE, *range(len(splits()["train"])))
    with pytest.raises(UserError, match=f"{SKIPPED_IN_A_ROW} updates in a row.*learning_rate"):
        train(tmp_path, everything)
    found = lines(tmp_path, phase="nonfinite")
    assert [line["step"] for line in found] == [101 + step for step in range(SKIPPED_IN_A_ROW)]
