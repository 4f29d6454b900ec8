"""Fine-tuning in memory gives what the program gives, and tells its callbacks."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import cogcalib_jax as cc
from tests.library import LORA, ONE, rows, task, write_base

TRAINING = cc.TrainingConfig(
    max_steps=4, style_steps=2, learning_rate=1e-2, log_every=1, refit_every=2, validate_every=2
)
METHOD = cc.Method(term="ls", gate="adaptive", weight=0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    write_base(folder / "base")
    return folder


@pytest.fixture(scope="module")
def model(place):
    return cc.Model.from_pretrained(place / "base", lora=LORA, mesh=ONE)


class Heard(cc.Callback):
    """Keep all that is told, and ask the model at each validation."""

    def __init__(self, test):
        self.test, self.told, self.asked = test, [], []

    def on_start(self, info):
        self.told.append(("start", info.steps))

    def on_step(self, info):
        self.told.append((info.phase, info.step))
        assert np.isfinite(info.loss) and 0 <= info.gated_fraction <= info.known_fraction <= 1

    def on_threshold(self, info):
        self.told.append(("threshold", info.step))

    def on_validation(self, info):
        self.told.append(("validation", info.step))
        self.asked.append(info.model.predict(self.test).probs)

    def on_end(self, result):
        self.told.append(("end", result.threshold))


@pytest.fixture(scope="module")
def result(model):
    heard = Heard(task().test)
    made = cc.finetune(model, task(), METHOD, training=TRAINING, callbacks=[heard], seed=3)
    return made, heard


def leaves(model):
    return [np.asarray(x) for x in jax.tree.leaves(model.lora)]


def test_callbacks_hear_of_every_event_in_its_order(result):
    made, heard = result
    assert heard.told == [
        ("start", 4),
        *(("style", 1), ("style", 2), ("threshold", 2), ("validation", 2)),
        *(("finetune", 3), ("finetune", 4), ("threshold", 4), ("validation", 4)),
        *(("finetune", 5), ("finetune", 6), ("threshold", 6), ("validation", 6)),
        ("end", made.threshold),
    ]


def test_a_callback_asks_the_model_of_its_moment(result):
    made, heard = result
    np.testing.assert_array_equal(heard.asked[0], made.start.predict(heard.test).probs)
    np.testing.assert_array_equal(heard.asked[-1], made.model.predict(heard.test).probs)
    assert np.abs(heard.asked[0] - heard.asked[-1]).max() > 1e-4


def test_the_model_that_was_given_is_not_changed(model, result):
    before = cc.Model.from_pretrained(model.base.name, lora=LORA, mesh=ONE)
    for one, other in zip(leaves(model), leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((a != b).any() for a, b in zip(leaves(model), leaves(result[0].model), strict=True))


def test_files_hold_what_memory_holds(model, result, tmp_path):
    folder = tmp_path / "out"
    made = cc.finetune(model, task(), METHOD, training=TRAINING, output_dir=folder, seed=3)
    for one, other in zip(leaves(made.model), leaves(result[0].model), strict=True):
        np.testing.assert_array_equal(one, other)

    def timeless(records):
        times = ("examples_per_s", "tokens_per_s")
        return [{k: v for k, v in r.items() if k not in times} for r in records]

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert timeless(lines) == timeless(made.history) == timeless(result[0].history)
    assert (folder / "checkpoints").is_dir()


def test_a_fine_tuning_goes_on_from_its_checkpoint(model, result, tmp_path):
    class Stop(cc.Callback):
        def on_step(self, info):
            if info.step == 5:
                raise KeyboardInterrupt

    folder = tmp_path / "out"
    arguments = {"training": TRAINING, "output_dir": folder, "seed": 3}
    every = cc.CheckpointConfig(every=2)
    with pytest.raises(KeyboardInterrupt):
        cc.finetune(model, task(), METHOD, **arguments, checkpoint=every, callbacks=[Stop()])
    with pytest.raises(cc.UserError, match="not empty"):
        cc.finetune(model, task(), METHOD, **arguments)
    with pytest.raises(cc.UserError, match="cannot resume"):
        cc.finetune(model, task(), "sft", **arguments, resume=True)
    made = cc.finetune(model, task(), METHOD, **arguments, resume=True)
    for one, other in zip(leaves(made.model), leaves(result[0].model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mixture_with_the_start_is_fitted_and_applied(result):
    made, _ = result
    mixture = made.model.calibrate(task().calibration, "mixture")
    found = made.model.predict(task().test, calibrator=mixture)
    np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-6)


def test_a_term_of_ones_own_is_trained_with_by_name(model):
    @cc.register_term("cube_of_test_finetuning", label="cube")
    class Cube(cc.Term):
        scale: float = 1.0

        def __call__(self, rows):
            return -self.scale * rows.log_p_target**3

    short = cc.TrainingConfig(max_steps=2, style_steps=0, learning_rate=1e-2)
    made = [
        cc.finetune(model, task(), name, training=short).model
        for name in ("sft", "cube_of_test_finetuning(scale=2.0)=0.5")
    ]
    differ = [(a != b).any() for a, b in zip(*map(leaves, made), strict=True)]
    assert any(differ)


def test_a_thread_may_fine_tune(model):
    short, found = cc.TrainingConfig(max_steps=1, style_steps=0), []
    thread = threading.Thread(
        target=lambda: found.append(cc.finetune(model, task(), "sft", training=short))
    )
    thread.start()
    thread.join()
    assert found[0].history[-1]["phase"] == "validation"


def test_nothing_is_written(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cc.finetune(model, task(), "kl@soft=0.2", training=cc.TrainingConfig(max_steps=1))
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "cools"}, "expected sft, a term"),
        ({"method": cc.Method(term="mdca", gate="all")}, "options for term mdca"),
        ({"resume": True}, "expected output_dir"),
        ({"training": cc.TrainingConfig(batch_size=6), "mesh": 8}, "batch_size"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(place, model, change, told):
    if devices := change.pop("mesh", None):
        model = cc.Model.from_pretrained(
            place / "base", lora=LORA, mesh=cc.MeshConfig(data=devices)
        )
    with pytest.raises(cc.UserError, match=told):
        cc.finetune(model, task(), **({"method": "sft"} | change))


def test_an_optimizer_that_draws_parameters_is_refused_where_there_is_more_than_a_and_b(place):
    lora = replace(LORA, use_dora=True)
    model = cc.Model.from_pretrained(place / "base", lora=lora, mesh=ONE)
    with pytest.raises(cc.UserError, match="training.optimizer is ivon; expected adamw"):
        cc.finetune(model, task(), METHOD, training=replace(TRAINING, optimizer="ivon"))


def test_a_model_without_adapter_cannot_be_trained(place):
    bare = cc.Model.from_pretrained(place / "base", mesh=ONE)
    with pytest.raises(cc.UserError, match="lora=LoraConfig"):
        cc.finetune(bare, task(), "sft")
    with pytest.raises(cc.UserError, match="expected a Task. Make one with Task.from_rows"):
        cc.finetune(bare, list(rows()), "sft")
    assert len(rows()) == 80
