"""Calibration errors and their noise floor, against loops and simulations row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax import metrics
from tests.metrics.cases import SETTINGS, calibrated_rows, ece_by_loop, option_rows, rows


@SETTINGS
@given(rows(), st.sampled_from([1, 10, 15]))
def test_ece_equals_a_plain_loop_over_bins(data, bins):
    assert metrics.ece(*data, bins=bins) == pytest.approx(ece_by_loop(*data, bins), abs=1e-12)


def test_confidence_one_is_in_the_last_bin_and_zero_in_the_first():
    table = metrics.reliability_bins([0.0, 1.0, 0.95], [0, 1, 1], bins=15)
    assert table.count[0] == 1
    assert table.count[-1] == 2
    assert np.isnan(table.accuracy[1:-1]).all()


def test_a_decimal_on_an_edge_opens_its_bin():
    for tenths, bin_of_it in ((0.2, 3), (0.4, 6), (0.6, 9), (0.8, 12)):
        table = metrics.reliability_bins([tenths], [1])
        assert table.count[bin_of_it] == 1, tenths


def test_mce_is_the_largest_gap_of_the_table():
    confidence, correct = calibrated_rows(300, 1)
    table = metrics.reliability_bins(confidence, correct)
    expected = np.nanmax(np.abs(table.accuracy - table.confidence))
    assert metrics.mce(confidence, correct) == pytest.approx(expected)
    assert metrics.mce([0.1, 0.1, 0.9], [0, 0, 0]) == pytest.approx(0.9)


def test_equal_mass_ece_equals_array_split_without_ties():
    for n in (3, 15, 16, 200):
        confidence, correct = calibrated_rows(n, n)
        order = np.argsort(confidence)
        parts = [p for p in np.array_split(order, 15) if len(p)]
        expected = sum(abs(confidence[p].sum() - correct[p].sum()) for p in parts) / n
        assert metrics.ece_equal_mass(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_equal_mass_ece_keeps_ties_together():
    confidence = np.full(40, 0.7)
    correct = np.repeat([1.0, 0.0], [28, 12])
    assert metrics.ece_equal_mass(confidence, correct) == pytest.approx(0, abs=1e-12)


def test_classwise_ece_equals_a_loop_over_existing_options():
    probs, mask, answers = option_rows(200)
    per_class = [
        ece_by_loop(probs[mask[:, k], k], (answers[mask[:, k]] == k).astype(float), 15)
        for k in range(4)
    ]
    assert metrics.ece_classwise(probs, mask, answers) == pytest.approx(np.mean(per_class))


def test_debiased_ece_equals_the_sampled_estimator():
    confidence, correct = calibrated_rows(400, 3)
    table = metrics.reliability_bins(confidence, correct)
    filled = table.count > 0
    weight = table.count[filled] / 400
    accuracy, mean = table.accuracy[filled], table.confidence[filled]
    deviation = np.sqrt(accuracy * (1 - accuracy) / table.count[filled])
    drawn = np.random.default_rng(0).normal(accuracy, deviation, (400_000, filled.sum()))
    expected = 2 * metrics.ece(confidence, correct) - (np.abs(drawn - mean) @ weight).mean()
    assert metrics.ece_debiased(confidence, correct) == pytest.approx(expected, abs=1e-4)


def test_debiased_ece_has_less_bias_than_ece():
    pairs = [calibrated_rows(500, seed) for seed in range(40)]
    plain = np.mean([metrics.ece(*p) for p in pairs])
    debiased = np.mean([metrics.ece_debiased(*p) for p in pairs])
    assert abs(debiased) < 0.6 * plain


def floor_by_rows(confidence, bins, draws, seed):
    """The definition, row by row: [draws] values of ECE of simulated answers."""
    rng = np.random.default_rng(seed)
    hits = rng.random((draws, len(confidence))) < confidence
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.stack([(hits - confidence)[:, index == b].sum(1) for b in range(bins)], 1)
    return np.abs(gap).sum(1) / len(confidence)


@pytest.mark.parametrize(("low", "high"), [(0.25, 1.0), (0.6, 0.66)])
def test_noise_floor_equals_a_simulation_row_by_row(low, high):
    confidence = np.random.default_rng(5).uniform(low, high, 1500)
    floor = metrics.ece_noise_floor(confidence, draws=4000)
    simulated = floor_by_rows(confidence, 15, 4000, 1)
    error = 5 * simulated.std() / np.sqrt(4000)
    assert floor.mean == pytest.approx(simulated.mean(), abs=error)
    assert floor.p95 == pytest.approx(np.percentile(simulated, 95), abs=3 * error)


def test_noise_band_holds_the_exact_quantiles_of_a_bin():
    confidence = np.random.default_rng(5).uniform(0.25, 1, 1500)
    inside = confidence[(confidence >= 9 / 15) & (confidence < 10 / 15)]
    exact = np.ones(1)
    for p in inside:
        exact = np.convolve(exact, [1 - p, p])
    cumulative = np.cumsum(exact)
    band = metrics.ece_noise_floor(confidence, draws=4000).band
    for value, level in zip(band[9], (0.05, 0.95), strict=True):
        hits = round(value * len(inside))
        assert cumulative[hits - 1] - 0.012 < level < cumulative[hits] + 0.012
    assert np.isnan(band[:3]).all()


def test_noise_floor_is_lower_for_narrow_confidence():
    rng = np.random.default_rng(0)
    wide = metrics.ece_noise_floor(rng.uniform(0, 1, 1500)).mean
    narrow = metrics.ece_noise_floor(rng.uniform(0.60, 0.66, 1500)).mean
    assert wide == pytest.approx(0.031, abs=0.004)
    assert narrow == pytest.approx(0.010, abs=0.003)


def test_p_value_is_uniform_for_a_calibrated_model():
    values = [metrics.ece_p_value(*calibrated_rows(300, s), draws=200, seed=s) for s in range(150)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.075)
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)


def test_p_value_is_small_for_an_overconfident_model():
    confidence, correct = calibrated_rows(1000, 0, low=0.3)
    overconfident = metrics.ece_p_value(np.minimum(confidence + 0.2, 1), correct, draws=999)
    assert overconfident == pytest.approx(1 / 1000)


def test_p_value_counts_ties_as_reached():
    assert metrics.ece_p_value([0.5], [1]) == 1.0
