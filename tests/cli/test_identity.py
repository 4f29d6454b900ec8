"""What a resumed run, and a shared style phase, must have in common: stated field by field."""

from copy import deepcopy
from dataclasses import replace

import pytest

from cogcalib_jax.cli.eval_config import EvalConfig
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.settings import (
    identity,
    leaves,
    places,
    style_identity,
    with_places_of,
)
from cogcalib_jax.training.config import TrainingConfig

# Every field of a run, by what depends on it.
NEITHER = """
    run_dir resume dry_run track known_by adapter data.path model.path training.nonfinite
    mesh.data mesh.fsdp mesh.tensor mesh.expert
    checkpoint.every checkpoint.keep
"""
# anchor.path is a place, but whether there are anchors at all is not.
NOT_STYLE = """
    compare ensemble_members also option_score
    recommended anchor.path anchor.carve anchor.methods anchor.epochs
    anchor.learning_rate anchor.rows_per_step anchor.term anchor.weight anchor.tempered
    evaluation.calibrator
    method.name method.term method.gate method.weight method.space method.normalise method.margin
    method.reduction
    training.optimizer evaluation.fit_taught
    training.schedule training.refit_every training.validate_every training.keep
    training.probe_rows composition.known_share composition.by
    evaluation.batch_size evaluation.mc_passes evaluation.bins
    evaluation.resamples evaluation.open.max_new_tokens evaluation.open.samples
    evaluation.open.temperature evaluation.open.p_true
"""
BOTH = """
    seed ensemble_member
    data.task data.columns data.answers data.answers_from data.on_bad_row data.prompt data.few_shot
    data.protocol data.max_length data.calibration_rows data.validation_rows data.style_fraction
    data.train_rows data.test_rows data.shared_groups data.split_seed
    world.entities world.exposures world.exposure_probabilities
    world.known_exposure world.question_rows world.train world.test
    world.validation world.calibration world.style world.anchor world.other_relations
    world.seed
    facts.train facts.test facts.validation facts.calibration
    facts.style facts.anchor facts.relations facts.seed
    model.dtype model.remat model.attention model.quantise
    lora.r lora.lora_alpha lora.target_modules lora.lora_dropout
    lora.use_rslora lora.use_dora
    loss.space loss.tokens loss.correct loss.lm_weight
    training.epochs training.max_steps training.batch_size training.accumulation
    training.learning_rate training.warmup_fraction training.weight_decay training.clip_norm
    training.style_steps training.style_learning_rate training.log_every
    distributed.coordinator distributed.processes distributed.process distributed.auto
    distributed.heartbeat_seconds
    pretrain.hidden_size pretrain.intermediate_size pretrain.cache_dir
"""
FIELDS = [path for path, _ in leaves(RunConfig)]


def changed(config, path):
    """`config` with another value at `path`, past the checks of its range."""
    config = owner = deepcopy(config)
    *sections, name = path.split(".")
    for section in sections:
        owner = getattr(owner, section)
    object.__setattr__(owner, name, "another")
    return config


def depends_on(part, config):
    return {path for path in FIELDS if part(changed(config, path)) != part(config)}


def test_every_field_says_what_depends_on_it():
    groups = [text.split() for text in (NEITHER, NOT_STYLE, BOTH)]
    assert sorted(sum(groups, [])) == sorted(FIELDS), "a new field: say here what depends on it"
    assert depends_on(identity, RunConfig()) == {*groups[1], *groups[2]}
    assert depends_on(style_identity, RunConfig()) == {*groups[2]}


@pytest.mark.parametrize(
    ("given", "unseen"),
    [
        ({"style_steps": 3}, {"training.epochs", "training.max_steps"}),
        ({"style_learning_rate": 1e-3}, {"training.learning_rate"}),
    ],
)
def test_style_adaptation_sees_no_setting_that_its_own_replaces(given, unseen):
    config = RunConfig(training=TrainingConfig(**given))
    assert depends_on(style_identity, config) == {*BOTH.split()} - unseen
    assert depends_on(identity, config) >= unseen


def own_rows(**data):
    return RunConfig(
        data=DataConfig(task="custom", path="rows", **data), model=ModelConfig("base"), adapter="a"
    )


def test_places_move_together():
    config = own_rows()
    wanted = {"data.path": "rows", "model.path": "base", "adapter": "a", "anchor.path": None}
    assert places(config) == wanted
    moved = replace(
        own_rows(max_length=99),
        data=DataConfig(task="custom", path="there"),
        model=ModelConfig("here"),
        adapter=None,
    )
    assert places(with_places_of(config, moved)) == places(moved)
    assert identity(with_places_of(config, moved)) == identity(config)


def test_an_added_field_counts_once_it_is_not_the_default():
    assert "shared_groups" not in identity(own_rows())["data"]
    dropping = identity(own_rows(shared_groups="drop"))
    assert dropping["data"]["shared_groups"] == "drop"


def test_an_evaluation_is_told_by_its_adapters_and_not_by_its_places():
    config = EvalConfig(model=ModelConfig("base"), adapter=("a", "b"), run_dir="here", resume=True)
    assert identity(config)["adapter"] == ["a", "b"]
    for same in (
        replace(config, run_dir="there"),
        replace(config, resume=False),
        replace(config, model=ModelConfig("moved")),
    ):
        assert identity(same) == identity(config)
    assert identity(replace(config, seed=1)) != identity(config)
