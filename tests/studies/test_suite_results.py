"""Means over seeds of accuracy and confidence while training, against numbers worked out here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cogcalib_jax.report.load_run import Method, RunResults
from cogcalib_jax.studies.suite_results import (
    followed_methods,
    points,
    seed_means,
    training_tables,
)

STEPS = (60, 90, 120)
# Accuracy and confidence of unknown validation questions, [seeds, moments].
ACCURACY = np.array([[0.3, 0.5, 0.2], [0.4, 0.5, 0.4], [0.2, 0.6, 0.3]])
CONFIDENCE = np.array([[0.5, 0.5, 0.8], [0.4, 0.6, 0.9], [0.6, 0.7, 0.7]])
# The best epoch is the second one in the first seed and the last in the others.
NLL = np.array([[0.1, 1.0, 2.0], [0.1, 2.0, 1.0], [0.1, 2.0, 1.0]])
BEST = [1, 2, 2]


def method(seed: int, key: str = "sft", shift: int = 0) -> Method:
    dynamics, steps = [], []
    for i, step in enumerate(STEPS):
        for group, high in (("known", 0.4), ("unknown", 0.0)):
            dynamics.append(
                {
                    "step": step + shift,
                    "data": "validation",
                    "group": group,
                    "n": 20 + seed,
                    "accuracy": ACCURACY[seed, i] + high,
                    "confidence": CONFIDENCE[seed, i],
                    "nll": 1.0,
                }
            )
        steps.append({"step": step + shift, "phase": "validation", "nll": NLL[seed, i]})
    return Method(key, {}, {}, tuple(steps), tuple(dynamics), "config.yaml", None)


def runs(*methods_of_seeds) -> dict[int, RunResults]:
    return {
        seed: RunResults(Path(), tuple(methods), ("world",), 60, {}, 15, {})
        for seed, methods in enumerate(methods_of_seeds)
    }


@pytest.fixture(scope="module")
def three():
    return [method(seed) for seed in range(3)]


def test_a_line_holds_the_mean_and_both_ends_of_the_seeds(three):
    lines = [x for x in seed_means(three) if x["group"] == "unknown"]
    assert [line["step"] for line in lines] == list(STEPS)
    for name, wanted in (("accuracy", ACCURACY), ("confidence", CONFIDENCE)):
        got = [[line[name], line[f"{name}_low"], line[f"{name}_high"]] for line in lines]
        np.testing.assert_allclose(got, np.array([wanted.mean(0), wanted.min(0), wanted.max(0)]).T)


def test_seeds_with_other_epoch_lengths_are_averaged_epoch_by_epoch(three):
    moved = [three[0], method(1, shift=3), method(2)]
    assert [x["step"] for x in seed_means(moved) if x["group"] == "known"] == [61, 91, 121]
    torn = replace(three[0], dynamics=three[0].dynamics[:-2])
    assert seed_means([torn, *three[1:]]) is None


def test_the_table_has_start_best_epoch_and_end_with_intervals(three):
    (table,) = training_tables(runs(*([m] for m in three))).values()
    assert [row[2] for row in table.rows] == ["start", "best epoch", "end"] * 2
    best, end = table.rows[4:6]
    assert best[:2] == ("unknown, not trained on", "21")
    accuracy = 100 * ACCURACY[range(3), BEST]
    confidence = 100 * CONFIDENCE[range(3), BEST]
    assert best[3] == f"{accuracy.mean():.1f} ± {accuracy.std(ddof=1):.1f} %"
    for place, values in (
        (5, confidence - accuracy),
        (6, accuracy - 100 * ACCURACY[:, 0]),
        (7, confidence - 100 * CONFIDENCE[:, 0]),
    ):
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert best[place] == f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
    gap = 100 * (CONFIDENCE[:, 2] - ACCURACY[:, 2])
    assert end[5].startswith(f"{gap.mean():+.1f} ")
    assert table.rows[0][6:] == ("", "")


def test_one_seed_has_no_interval(three):
    assert points(np.array([0.25])) == "+25.0"
    (table,) = training_tables(runs([three[0]])).values()
    assert not any("[" in cell for row in table.rows for cell in row)


def test_sampled_rows_and_what_a_seed_lacks_are_left_out(three):
    dropout = method(0, "mc_dropout")
    derived = replace(method(0, "sft_best_epoch"), dynamics=())
    both = runs([three[0], method(0, "cols"), dropout, derived], [three[1], dropout, derived])
    assert list(followed_methods(both, ())) == ["sft"]
    assert list(followed_methods(both, ("cols",))) == []
