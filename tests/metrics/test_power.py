"""What n questions can show: powers checked by simulating the tests they promise."""

import math

import numpy as np
import pytest

from cogcalib_jax.metrics import ece_noise_floor
from cogcalib_jax.metrics.power import (
    detectable_accuracy_difference,
    detectable_mean_difference,
    expected_noise_floor,
)

REPETITIONS = 4000
# Three standard errors of a share of .8.
SLACK = 3 * math.sqrt(0.8 * 0.2 / REPETITIONS)


def test_a_detectable_mean_difference_is_found_in_four_of_five_samples():
    n, deviation = 200, 0.3
    difference = detectable_mean_difference(n, deviation)
    assert difference == pytest.approx(2.801585 * 0.3 / math.sqrt(200))
    draws = np.random.default_rng(0).normal(difference, deviation, (REPETITIONS, n))
    z = draws.mean(1) / (deviation / math.sqrt(n))
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=SLACK)


def test_a_detectable_accuracy_difference_is_found_by_mcnemars_test():
    n, discordant = 1000, 0.1
    difference = detectable_accuracy_difference(n, discordant)
    better, worse = (discordant + difference) / 2, (discordant - difference) / 2
    counts = np.random.default_rng(0).multinomial(
        n, [better, worse, 1 - discordant], size=REPETITIONS
    )
    z = (counts[:, 0] - counts[:, 1]) / np.sqrt(counts[:, 0] + counts[:, 1])
    # McNemar's test takes its variance under no difference, which costs a little power.
    assert np.mean(np.abs(z) > 1.959964) == pytest.approx(0.8, abs=SLACK + 0.01)


def test_no_accuracy_differs_by_more_than_the_discordant_questions():
    """2.80^2 (1 / 0.05 - 1) = 149.1 questions are the fewest that can show 5 %."""
    assert detectable_accuracy_difference(149, 0.05) is None
    assert detectable_accuracy_difference(150, 0.05) == pytest.approx(0.05, abs=2e-4)


def test_floors_are_those_of_the_assumed_confidences():
    """The figures of docs/metrics.md for 1,500 rows: about .03 and .01."""
    floor = expected_noise_floor(1500, 0.0)
    assert floor.wide[0] == pytest.approx(0.031, abs=0.002)
    floor = expected_noise_floor(1500, 0.25)
    evenly = ece_noise_floor(np.random.default_rng(0).uniform(0.25, 1, 1500))
    assert floor.wide[0] == pytest.approx(evenly.mean, rel=0.05)
    narrow = ece_noise_floor(np.random.default_rng(0).uniform(0.595, 0.655, 1500))
    assert floor.narrow[0] == pytest.approx(narrow.mean, rel=0.15)
    assert floor.narrow[0] < 0.5 * floor.wide[0]
    assert floor.narrow[1] > floor.narrow[0]
