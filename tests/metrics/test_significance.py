"""Comparisons of methods: intervals, p-values, and what n questions can show."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cogcalib_jax import metrics
from cogcalib_jax.metrics import InvalidRows, ece_noise_floor
from cogcalib_jax.metrics.bootstrap import expected_noise_floor
from cogcalib_jax.metrics.significance import (
    FEWEST_SEEDS,
    detectable_accuracy_difference,
    detectable_mean_difference,
    holm,
    paired_difference,
    resamples_for,
    student_t,
)


def methods(n=200, seeds=1, shift=0.0, seed=0):
    """Per-row losses of two methods that share each question's difficulty."""
    rng = np.random.default_rng(seed)
    question = rng.normal(0, 1, n)
    a = [question + rng.normal(shift, 0.2, n) for _ in range(seeds)]
    b = [question + rng.normal(0, 0.2, n) for _ in range(seeds)]
    return a, b


def answered(n, overconfidence, seed):
    """(confidence, correct) on the questions of `seed`; only the confidence differs by method."""
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.3, 0.9, n)
    correct = (rng.random(n) < chance).astype(float)
    return np.clip(chance + overconfidence, 0, 1), correct


def test_one_seed_is_the_paired_bootstrap_over_questions():
    (a,), (b,) = methods(shift=0.03)
    result = paired_difference([a], [b], resamples=4000)
    rng = np.random.default_rng(1)
    means = np.array([(a - b)[rng.integers(0, 200, 200)].mean() for _ in range(4000)])
    assert result.difference == pytest.approx((a - b).mean())
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([result.low, result.high], expected, atol=0.15 * means.std())
    expected_p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    assert result.p_value == pytest.approx(expected_p, abs=0.02)
    assert result.per_seed == (result.difference,)


def test_pairing_removes_the_difficulty_of_questions():
    (a,), (b,) = methods(shift=0.1)
    paired = paired_difference([a], [b])
    unpaired = paired_difference([a], [np.roll(b, 1)])
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)
    assert paired.p_value < 0.01 < unpaired.p_value


def test_hierarchical_bootstrap_resamples_seeds_and_shared_questions():
    rng = np.random.default_rng(0)
    question = rng.normal(0, 1, 100)
    effects = np.array([-0.3, 0.0, 0.2, 0.4])
    a = [question + effect for effect in effects]
    zero = [np.zeros(100)] * 4
    result = paired_difference(a, zero, resamples=4000)
    plain = [
        (effects[rng.integers(0, 4, 4)].mean() + question[rng.integers(0, 100, 100)].mean())
        for _ in range(4000)
    ]
    expected = np.percentile(plain, [2.5, 97.5])
    np.testing.assert_allclose([result.low, result.high], expected, atol=0.15 * np.std(plain))
    np.testing.assert_allclose(result.per_seed, effects + question.mean())


def test_seeds_with_different_numbers_of_questions_draw_their_own():
    rng = np.random.default_rng(0)
    a = [rng.normal(0.1, 1, n) for n in (80, 120)]
    result = paired_difference(a, [np.zeros(80), np.zeros(120)], resamples=20_000)
    plain = []
    for _ in range(20_000):
        drawn = [values[rng.integers(0, len(values), len(values))].mean() for values in a]
        plain.append(np.mean([drawn[i] for i in rng.integers(0, 2, 2)]))
    expected = np.percentile(plain, [2.5, 97.5])
    np.testing.assert_allclose([result.low, result.high], expected, atol=0.12 * np.std(plain))


@pytest.mark.parametrize("seeds", [4, FEWEST_SEEDS])
def test_from_five_seeds_on_students_t_over_seeds_must_agree(seeds):
    rng = np.random.default_rng(2)
    effects = (0.2, 0.9, 0.5, 1.1, 0.4)[:seeds]
    a = [rng.normal(effect, 0.1, 300) for effect in effects]
    result = paired_difference(a, [np.zeros(300)] * seeds)
    t = stats.ttest_1samp(result.per_seed, 0.0)
    low, high = t.confidence_interval()
    if seeds < FEWEST_SEEDS:
        # Of the bootstrap alone: too narrow, and shown nowhere as a finding.
        assert low < result.low < result.high < high and result.p_value < t.pvalue
    else:
        np.testing.assert_allclose([result.low, result.high], [low, high], rtol=1e-9)
        assert result.p_value == pytest.approx(t.pvalue)


def test_the_bootstrap_decides_where_questions_vary_more_than_seeds():
    # The same questions in every seed: seeds agree, and Student's t would call that certainty.
    question = np.random.default_rng(3).normal(0.05, 1, 300)
    a = [question + shift for shift in np.linspace(-1e-4, 1e-4, FEWEST_SEEDS)]
    result = paired_difference(a, [np.zeros(300)] * FEWEST_SEEDS)
    assert stats.ttest_1samp(result.per_seed, 0.0).pvalue < 1e-6 < 0.05 < result.p_value
    one = paired_difference(a[:1], [np.zeros(300)])
    assert result.high - result.low == pytest.approx(one.high - one.low, rel=0.1)


def test_five_seeds_seldom_claim_what_is_not_there():
    rng = np.random.default_rng(4)
    claims = 0
    for draw in range(200):
        effects = rng.normal(0, 0.5, FEWEST_SEEDS)
        a = [rng.normal(effect, 1, 100) for effect in effects]
        result = paired_difference(a, [np.zeros(100)] * FEWEST_SEEDS, resamples=400, seed=draw)
        claims += result.p_value <= 0.05
        assert (result.p_value <= 0.05) == (result.low > 0 or result.high < 0)
    # The bootstrap alone claims 33 of these 200.
    assert claims <= 18, "binomial(200, .05) exceeds 18 in 1 of 170 times"


def test_students_t_knows_of_a_bias_on_either_side():
    values = [0.3, 0.5, 0.4, 0.45, 0.35]
    low, high, p_value = student_t(values)
    assert student_t(values, down=0.1, up=0.2)[:2] == pytest.approx((low - 0.1, high + 0.2))
    shifted = stats.ttest_1samp(np.array(values) - 0.1, 0.0).pvalue
    assert student_t(values, down=0.1)[2] == pytest.approx(shifted) and shifted > p_value
    assert student_t(np.negative(values), up=0.1)[2] == pytest.approx(shifted)
    assert student_t(values, down=0.5)[2] == 1
    assert student_t([0.0] * 5)[2] == 1 and student_t([0.1] * 5)[2] == 0


def test_a_method_does_not_differ_from_itself():
    a, _ = methods(seeds=3)
    result = paired_difference(a, a)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_swapping_the_methods_turns_the_sign():
    a, b = methods(seeds=3, shift=0.02)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    np.testing.assert_allclose([-back.high, -back.low], [forth.low, forth.high], rtol=1e-9)
    assert back.p_value == forth.p_value
    pairs = [answered(200, 0.2, 0)], [answered(200, 0.0, 0)]
    forth = paired_difference(*pairs, statistic="ece", resamples=200)
    back = paired_difference(*pairs[::-1], statistic="ece", resamples=200)
    np.testing.assert_allclose([-back.high, -back.low], [forth.low, forth.high], rtol=1e-9)


def test_named_statistics_equal_the_metrics():
    a, b = (
        [answered(150, 0.2, 1), answered(150, 0.2, 2)],
        [answered(150, 0, 1), answered(150, 0, 2)],
    )
    for name in ("ece", "auroc"):
        metric = getattr(metrics, name)
        result = paired_difference(a, b, statistic=name, resamples=50)
        expected = [metric(*x) - metric(*y) for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(result.per_seed, expected, atol=1e-12)


def test_a_function_of_rows_gives_what_the_named_statistic_gives():
    a, b = [answered(60, 0.2, 1)], [answered(60, 0.0, 5)]
    named = paired_difference(a, b, statistic="auroc", resamples=100)
    function = paired_difference(a, b, statistic=metrics.auroc, resamples=100)
    assert function.low == pytest.approx(named.low)
    assert function.high == pytest.approx(named.high)
    assert function.p_value == named.p_value


@pytest.mark.parametrize("bins", [5, 15, 40])
def test_an_ece_difference_is_that_of_the_bins_asked_for(bins):
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0.5, 1, (2, 800))
    right_a, right_b = rng.random(800) < 0.8 * a, rng.random(800) < 0.95 * b
    d = paired_difference([(a, right_a)], [(b, right_b)], statistic="ece", resamples=100, bins=bins)
    wanted = metrics.ece(a, right_a, bins=bins) - metrics.ece(b, right_b, bins=bins)
    assert d.difference == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("tests", [1, 50, 132])
def test_enough_resamples_leave_holm_room(tests):
    smallest = 2 / (1 + resamples_for(tests, 0.05))
    assert 0.02 < holm([smallest] * tests)[0] < 0.05


def test_ece_difference_is_found_where_it_is_large():
    a = [answered(1500, 0.3, seed) for seed in range(3)]
    b = [answered(1500, 0.0, seed) for seed in range(3)]
    result = paired_difference(a, b, statistic="ece", resamples=400)
    assert result.low > 0.1
    assert result.p_value < 0.01


def test_ece_interval_reaches_past_the_bias_of_a_calibrated_method():
    """Observed ECE of the calibrated method is all bias; the true difference is A's own ECE."""
    truth, covered = 0.1, 0
    for seed in range(40):
        a, b = answered(500, truth, seed), answered(500, 0.0, seed)
        result = paired_difference([a], [b], statistic="ece", resamples=200)
        covered += result.low <= truth <= result.high
    assert covered >= 36


def holm_by_definition(p_values, alpha):
    """Reject from the smallest p on, until one misses alpha / (number of those left)."""
    rejected = set()
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > alpha / (len(p_values) - step):
            break
        rejected.add(int(index))
    return rejected


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000).map(lambda i: i / 1000), max_size=8), st.integers(1, 300))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    alpha = alpha / 1001
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == holm_by_definition(p_values, alpha)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_holm_of_a_known_family():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_rows_that_do_not_pair_are_refused():
    good = np.arange(3.0)
    pair = ([0.5, 0.6], [1, 1])
    for a, b, more, match in (
        ([], [], {}, "0 seeds of A"),
        ([good], [good, good], {}, "1 seeds of A and 2 of B"),
        ([good, good], [good, good[:2]], {}, "seed 1: 3 questions of A and 2 of B"),
        ([good], [np.array([0, np.nan, 1])], {}, "row 1: nan is not finite"),
        ([np.zeros((2, 2))], [good], {}, "shape"),
        ([good], [good], {"statistic": "median"}, "statistic is 'median'"),
        ([pair], [pair], {"statistic": "auroc"}, "seed 0: the statistic is undefined"),
    ):
        with pytest.raises(InvalidRows, match=match):
            paired_difference(a, b, resamples=5, **more)
    with pytest.raises(InvalidRows, match="p-values"):
        holm([0.5, np.nan])


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
