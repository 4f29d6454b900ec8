"""How long a suite takes, told before it runs."""

from dataclasses import replace

import pytest

from cogcalib_jax.configlib import load_config
from cogcalib_jax.runs import dry_run
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.dry_run import Estimate, Estimator
from cogcalib_jax.studies import suite_plan
from cogcalib_jax.studies.suite import Cell
from cogcalib_jax.studies.suite_plan import METHOD_SECONDS, RUN_SECONDS, SLOWER, plan_text
from tests.runs.small_base import arguments, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    words = arguments(write_base(folder / "base"), folder / "unused", "--compare", "sft,ls,cols")
    return load_config(RunConfig, words, prog="", description="").config


@pytest.fixture
def estimated(monkeypatch):
    """The configs that were estimated; each costs a minute for its base and 6 s of operations."""
    asked = []

    def estimate(config):
        asked.append(config)
        return Estimate(60.0, 1.0, dict.fromkeys(config.resolved_methods(), 1.0), 2.0)

    monkeypatch.setattr(suite_plan, "_estimator", estimate)
    suite_plan.operations.cache_clear()
    yield asked
    suite_plan.operations.cache_clear()


def cells(base, folder, conditions, seeds):
    return [
        Cell(name, seed, replace(config, seed=seed, run_dir=str(place)), place, ())
        for name, config in conditions.items()
        for seed in seeds
        for place in [folder / name / str(seed)]
    ]


def minutes(text):
    return [line.split()[-2] for line in text.splitlines() if "to do" in line]


def test_cells_and_methods_cost_more_than_their_operations(base, tmp_path, estimated):
    alone = RUN_SECONDS + 3 * METHOD_SECONDS + SLOWER * 6
    text = plan_text(cells(base, tmp_path, {"a": base, "b": base}, [0]))
    # The second cell finds the base that the first one built.
    assert minutes(text) == [f"{(alone + SLOWER * 60) / 60:.1f}", f"{alone / 60:.1f}"]
    assert "factor of two" in text


def test_seeds_of_a_condition_are_estimated_once(base, tmp_path, estimated):
    long = replace(base, training=replace(base.training, epochs=9))
    text = plan_text(cells(base, tmp_path, {"short": base, "long": long}, [3, 4, 5]))
    assert len(minutes(text)) == 6
    assert [config.training.epochs for config in estimated] == [base.training.epochs, 9]


def test_products_of_one_model_are_measured_once(base, monkeypatch):
    measured = []

    def measure(*words):
        measured.append(words)
        return dry_run.Rates(1e9, 1e9, (1, 1, 1))

    monkeypatch.setattr(dry_run, "measure", measure)
    estimator = Estimator()
    short = estimator(base)
    double = estimator(replace(base, training=replace(base.training, epochs=8, batch_size=16)))
    assert len(measured) == 1
    assert double.methods["sft"] > 1.5 * short.methods["sft"] > 0
    assert short.pretraining == 0 < short.style


def test_an_estimate_leaves_nothing_of_a_run_out(base):
    estimator = Estimator()
    parts = estimator(base)
    run = dry_run.plan(base, lambda note: None)
    (rates,) = estimator._rates.values()
    together = sum(rates.seconds(work) for _, work in dry_run._parts(run, dry_run._updates(run)))
    assert parts.style + sum(parts.methods.values()) + parts.others == pytest.approx(together)
    assert parts.others > 0
