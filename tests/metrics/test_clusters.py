"""Repeats of a question count once: against the questions alone, and by simulation."""

import numpy as np
import pytest

from cogcalib_jax import metrics
from cogcalib_jax.metrics import InvalidRows
from cogcalib_jax.metrics.significance import paired_difference
from tests.metrics.cases import calibrated_rows, option_rows


def thrice(values):
    """Three copies of each row, far apart."""
    return np.concatenate([np.asarray(values)] * 3)


def assert_close(a, b, **tolerance):
    """Equal numbers in two trees of results."""
    assert type(a) is type(b) and (not isinstance(a, dict) or a.keys() == b.keys())
    if isinstance(a, dict):
        for key in a:
            assert_close(a[key], b[key], **tolerance)
    elif a is not None:
        np.testing.assert_allclose(a, b, **tolerance)


def test_questions_three_times_each_have_the_numbers_of_the_questions():
    """The very same resamples are drawn, so intervals, floors and p-values agree to rounding."""
    probs, counts, answers = option_rows(20)
    once = metrics.summarize(probs, counts, answers, 0.9 * probs, resamples=300)
    rows = [thrice(values) for values in (probs, counts, answers, 0.9 * probs)]
    clustered = metrics.summarize(*rows, clusters=thrice(np.arange(20)), resamples=300)
    assert (clustered.pop("n"), clustered.pop("n_questions"), once.pop("n")) == (60, 20, 20)
    # A guard of its density is a constant, whatever the number of rows.
    assert clustered.pop("ece_smooth") == pytest.approx(once.pop("ece_smooth"), rel=1e-4)
    # These two know of no clusters: their parts and their coverages are those of the rows.
    for name in ("ece_equal_mass", "aurc"):
        del once[name], clustered[name]
    assert_close(clustered, once, rtol=1e-9, atol=1e-12)
    # As independent rows the same table would claim intervals narrower by 1 / sqrt(3).
    apart = metrics.summarize(*rows, resamples=300)
    width = {name: np.diff(r["ci95"]["nll"])[0] for name, r in (("c", clustered), ("a", apart))}
    assert width["a"] < 0.7 * width["c"]
    assert apart["ece_noise_floor"]["mean"] < 0.8 * clustered["ece_noise_floor"]["mean"]


def test_rows_that_are_all_different_have_the_numbers_of_rows_without_clusters():
    probs, counts, answers = option_rows(40)
    labels = np.random.default_rng(0).permutation(40)
    plain = metrics.summarize(probs, counts, answers, 0.9 * probs, resamples=100)
    assert plain == metrics.summarize(
        probs, counts, answers, 0.9 * probs, clusters=labels, resamples=100
    )
    confidence, correct = calibrated_rows(40, 1)
    assert metrics.summarize_confidence(confidence, correct, resamples=100) == (
        metrics.summarize_confidence(confidence, correct, clusters=labels, resamples=100)
    )


def test_a_resample_takes_all_rows_of_a_question():
    """Against drawing questions one by one; sizes from 1 to 4, so the number of rows varies."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    confidence = rng.uniform(0.3, 1, 60)[labels]
    correct = (rng.random(60) < 0.7)[labels].astype(float)
    result = metrics.bootstrap_intervals(confidence, correct, {}, clusters=labels, resamples=4000)
    plain = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(labels == i) for i in rng.integers(0, 60, 60)])
        plain.append(correct[drawn].mean())
    expected = np.percentile(plain, [2.5, 97.5])
    np.testing.assert_allclose(result["accuracy"], expected, atol=0.15 * np.std(plain))


def test_the_noise_floor_draws_a_question_once_whatever_its_confidences():
    """Copies with other confidences (options in another order, say) share one uniform number."""
    rng = np.random.default_rng(1)
    labels = np.arange(150) % 50
    base = rng.uniform(0.4, 0.9, 50)[labels]
    for spread in (0.0, 0.08):
        confidence = np.clip(base + rng.uniform(-spread, spread, 150), 0, 1)
        floor = metrics.ece_noise_floor(confidence, draws=2000, clusters=labels)
        plain = []
        for _ in range(2000):
            sheet = (rng.random(50)[labels] < confidence).astype(float)
            plain.append(metrics.ece(confidence, sheet))
        assert floor.mean == pytest.approx(np.mean(plain), abs=4 * np.std(plain) / 40)
        assert floor.p95 == pytest.approx(np.percentile(plain, 95), rel=0.05)


def test_an_ece_of_repeats_is_no_finding():
    """p-values of calibrated models: uniform by question, far too small row by row."""
    rng = np.random.default_rng(2)
    found = {"clusters": 0, "rows": 0}
    for seed in range(100):
        confidence = rng.uniform(0.3, 0.95, 60)
        correct = (rng.random(60) < confidence).astype(float)
        rows, labels = (thrice(confidence), thrice(correct)), thrice(np.arange(60))
        kind = {"draws": 199, "seed": seed}
        found["clusters"] += metrics.ece_p_value(*rows, clusters=labels, **kind) <= 0.05
        found["rows"] += metrics.ece_p_value(*rows, **kind) <= 0.05
    assert found["clusters"] <= 12, "binomial(100, .05) exceeds 12 in 1 of 700 times"
    assert found["rows"] > 60


@pytest.mark.parametrize("statistic", ["mean", "ece", "auroc"])
def test_a_paired_difference_of_repeats_is_that_of_the_questions(statistic):
    rng = np.random.default_rng(3)
    sheets = []
    for shift in (0.1, 0.0):
        confidence = np.clip(rng.uniform(0.3, 0.9, 80) + shift, 0, 1)
        sheets.append((confidence, (rng.random(80) < confidence).astype(float)))

    def arms(copy):
        rows = [tuple(map(copy, pair)) for pair in sheets]
        return [[pair[0] if statistic == "mean" else pair] * 2 for pair in rows]

    kind = {"statistic": statistic, "resamples": 300}
    once = paired_difference(*arms(np.asarray), **kind)
    labels = [thrice(np.arange(80))] * 2
    clustered = paired_difference(*arms(thrice), clusters=labels, **kind)
    np.testing.assert_allclose(
        [clustered.difference, clustered.low, clustered.high, clustered.p_value],
        [once.difference, once.low, once.high, once.p_value],
        rtol=1e-9,
        atol=1e-12,
    )
    apart = paired_difference(*arms(thrice), **kind)
    assert apart.high - apart.low < 0.75 * (clustered.high - clustered.low)


def test_seeds_with_other_repeats_draw_their_own_questions():
    values = np.random.default_rng(4).normal(0.1, 1, 60)
    zero = [np.zeros(60)] * 2
    labels = [np.arange(60) % 20, np.arange(60) % 30]
    own = paired_difference([values] * 2, zero, clusters=labels, resamples=500)
    shared = paired_difference([values] * 2, zero, clusters=labels[:1] * 2, resamples=500)
    # Two independent draws of questions average out what one draw for both seeds does not.
    assert own.high - own.low < 0.9 * (shared.high - shared.low)


def test_clusters_that_do_not_fit_are_refused():
    confidence, correct = calibrated_rows(5, 0)
    with pytest.raises(InvalidRows, match=r"clusters have shape \(4,\): expected \(5,\)"):
        metrics.summarize_confidence(confidence, correct, clusters=np.arange(4))
    for missing in (None, np.nan):
        with pytest.raises(InvalidRows, match="clusters, row 3: .* is missing"):
            metrics.summarize_confidence(confidence, correct, clusters=[1, 1, 2, missing, missing])
    with pytest.raises(InvalidRows, match="clusters of 1 seeds and rows of 2"):
        paired_difference([confidence] * 2, [confidence] * 2, clusters=[np.arange(5)])
