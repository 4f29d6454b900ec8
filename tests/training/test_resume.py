"""A run that was killed and resumed is, bit for bit, the run that was not."""

import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from cogcalib_jax.errors import Preempted, UserError, listening
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.training import finetune as finetune_module
from cogcalib_jax.training import loop as loop_module
from cogcalib_jax.training.checkpoint import Checkpoints
from cogcalib_jax.training.finetune import finetune, style_phase
from tests.training.small_trainer import (
    Killed,
    checksums,
    lines,
    lora,
    same_bits,
    trainer,
)

COLS = MethodConfig(name="cols", weight=0.5).resolve()


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    return folder, style_phase(trainer(), lora(), folder)


@pytest.fixture(scope="module")
def whole(style, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, finetune(trainer(), COLS, style[1], style[0], folder)


def kill_in_validation(monkeypatch, at):
    """After its lines are written, before the checkpoint of the same update."""
    validate = finetune_module.validate

    def killed(*args):
        result = validate(*args)
        if args[3] == at:
            raise Killed
        return result

    monkeypatch.setattr(finetune_module, "validate", killed)


def kill_after_checkpoint(monkeypatch, at):
    save = Checkpoints.save

    def killed(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step == at:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", killed)


def kill_before_update(monkeypatch, at):
    batches = loop_module.micro_batches

    def killed(trainable, encoded, step, *args):
        if step == at:
            raise Killed
        return batches(trainable, encoded, step, *args)

    monkeypatch.setattr(loop_module, "micro_batches", killed)


# Five updates: refits after 2, 4 and 5, validations after 3 and 5, checkpoints after 2, 4
# and 5; steps in files count on from the three of style adaptation.
KILLS = {
    "before any checkpoint": (kill_before_update, 1),
    "right after a checkpoint": (kill_after_checkpoint, 2),
    "between validation and checkpoint": (kill_in_validation, 3 + 5),
    "while a line is written": (kill_before_update, 3),
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_and_resumed_is_the_run_that_was_not(when, style, whole, tmp_path, monkeypatch):
    kill, at = KILLS[when]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch, at)
        finetune(trainer(), COLS, style[1], style[0], tmp_path)
    if when == "while a line is written":
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "phase": "fine')
    resumed = finetune(trainer(), COLS, style[1], style[0], tmp_path)
    folder, result = whole
    assert checksums(tmp_path) == checksums(folder)
    assert same_bits(resumed.lora, result.lora) and same_bits(resumed.best_lora, result.best_lora)
    assert (resumed.threshold, resumed.best_epoch) == (result.threshold, result.best_epoch)
    for name in ("metrics.jsonl", "dynamics.jsonl"):
        assert lines(tmp_path, name) == lines(folder, name)


def terminated_in(monkeypatch, owner, name, call, after=False):
    """SIGTERM comes when that function is called for that time, or just after."""
    function, calls = getattr(owner, name), []

    def terminated(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            signal.raise_signal(signal.SIGTERM)
        result = function(*args, **kwargs)
        if len(calls) == call and after:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, name, terminated)


# What is called when, and the checkpoint that is left: a refit comes before the first update and
# after 2, 4 and 5, validations at the start and after 3 and 5.
TERMINATIONS = {
    "before the first update": (finetune_module, "validate", 1, True, None),
    "during an update": (loop_module.StepLog, "updated", 1, False, "1-stopped"),
    "during an update that a checkpoint follows": (loop_module.StepLog, "updated", 2, True,
                                                   "2-stopped"),
    "while a checkpoint is taken": (Checkpoints, "save", 1, False, "2"),
    "during a refit": (finetune_module.Trainer, "refit", 3, False, "4-stopped"),
    "after a validation's lines": (finetune_module, "validate", 2, True, "3-stopped"),
    "at the end": (finetune_module, "validate", 3, True, "5-stopped"),
}  # fmt: skip


@pytest.mark.parametrize("when", TERMINATIONS)
def test_stopped_by_sigterm_it_loses_no_update(when, style, whole, tmp_path, monkeypatch):
    owner, name, call, after, left = TERMINATIONS[when]
    with monkeypatch.context() as patch, listening(), pytest.raises(Preempted) as stopped:
        terminated_in(patch, owner, name, call, after)
        finetune(trainer(), COLS, style[1], style[0], tmp_path)
    if left is None:
        assert str(stopped.value) == "" and not (tmp_path / "checkpoints").exists()
    else:
        update = left.split("-")[0]
        assert str(stopped.value) == f"saved after update {update} of 5 (cols)"
        assert (tmp_path / "checkpoints" / left).is_dir()
    resumed = finetune(trainer(), COLS, style[1], style[0], tmp_path)
    folder, result = whole
    assert checksums(tmp_path) == checksums(folder)
    assert same_bits(resumed.lora, result.lora) and same_bits(resumed.best_lora, result.best_lora)
    for name in ("metrics.jsonl", "dynamics.jsonl"):
        assert lines(tmp_path, name) == lines(folder, name)


def test_the_whole_run_is_what_the_tests_above_take_it_for(style, whole):
    """With an adaptive threshold that moves, dropout, and every kind of line."""
    folder, result = whole
    steps = {
        phase: [line["step"] for line in lines(folder, phase=phase)]
        for phase in ("style", "finetune", "refit", "validation")
    }
    assert steps == {
        "style": [1, 2, 3],
        "finetune": [4, 5, 6, 7, 8],
        "refit": [3, 5, 7, 8],
        "validation": [3, 6, 8],
    }
    assert len({line["threshold"] for line in lines(folder, phase="refit")}) > 1
    assert not same_bits(result.lora, style[1])
    assert trainer().trainable.dropout


def test_a_finished_run_is_left_as_it_is(style, whole):
    folder, result = whole
    before = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "dynamics.jsonl")}
    again = finetune(trainer(), COLS, style[1], style[0], folder)
    assert same_bits(again.lora, result.lora)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_style_phase_killed_before_its_checkpoint_leaves_no_line_behind(
    style, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_before_update(patch, 2)
        style_phase(trainer(), lora(), tmp_path)
    assert lines(tmp_path)
    assert same_bits(style_phase(trainer(), lora(), tmp_path), style[1])
    assert lines(tmp_path) == lines(style[0])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"identity": {"seed": 1}}, "seed is 1 but it was started with 0"),
        ({"made_from": {"base": "large"}}, "made_from.base is 'large' but it was started with"),
    ],
)
def test_another_run_or_base_does_not_continue_it(other, named, whole, style):
    folder, _ = whole
    if "identity" in other:
        other = {"identity": trainer().trainable.identity | other["identity"]}
    changed = replace(trainer(), trainable=replace(trainer().trainable, **other))
    with pytest.raises(UserError, match=named):
        finetune(changed, COLS, style[1], style[0], folder)


def test_another_methods_checkpoint_does_not_continue_it(whole, style, tmp_path):
    """Methods of a comparison have one config: what they train with tells them apart."""
    shutil.copytree(whole[0], tmp_path / "run")
    other = replace(COLS, weight=0.25)
    with pytest.raises(UserError, match=r"method\.weight is 0\.25 but it was started with 0\.5"):
        finetune(trainer(), other, style[1], style[0], tmp_path / "run")
    # A name that stands for the same term and gate is no other method.
    named = MethodConfig(name="cols", weight=0.5).resolve()
    unnamed = replace(named, name=None)
    assert same_bits(
        finetune(trainer(), unnamed, style[1], style[0], tmp_path / "run").lora, whole[1].lora
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "dynamics.jsonl"])
def test_a_journal_that_lost_lines_is_written_again_or_the_run_refused(
    name, whole, style, tmp_path, capfd
):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    finetune(trainer(), COLS, style[1], style[0], run)
    assert lines(run, name) == lines(whole[0], name) and checksums(run) == checksums(whole[0])
    assert f"checkpoint 5 is damaged ({name} has" in capfd.readouterr().err
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name} has 0 of .* delete this folder to start"):
        finetune(trainer(), COLS, style[1], style[0], run)
    # As it advises.
    shutil.rmtree(run / "checkpoints")
    finetune(trainer(), COLS, style[1], style[0], run)
    assert lines(run, name) == lines(whole[0], name) and checksums(run) == checksums(whole[0])


def test_threshold_and_best_validation_are_those_the_files_tell_of(whole):
    folder, result = whole
    fits = lines(folder, phase="refit")
    assert np.float32(fits[-1]["threshold"]) == np.float32(result.threshold)
    thresholds = {line["step"]: line["threshold"] for line in lines(folder, phase="finetune")}
    # A fit after update n governs from update n + 1 on.
    assert thresholds[5] == pytest.approx(fits[0]["threshold"])
    assert thresholds[6] == pytest.approx(fits[1]["threshold"])
    assert thresholds[8] == pytest.approx(fits[2]["threshold"])
    best = min(lines(folder, phase="validation")[1:], key=lambda line: line["nll"])
    assert result.best_epoch == pytest.approx((best["step"] - 3) * 8 / 20)
