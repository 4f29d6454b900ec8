"""The bootstrap by counts, against resampling row by row."""

import numpy as np

from cogcalib_jax import metrics
from tests.metrics.cases import calibrated_rows, option_rows


def test_bootstrap_intervals_equal_resampling_row_by_row():
    confidence, correct = calibrated_rows(250, 7)
    confidence = np.round(confidence, 1)
    loss = np.random.default_rng(2).exponential(1, 250)
    result = metrics.bootstrap_intervals(confidence, correct, {"nll": loss}, resamples=4000)
    rng = np.random.default_rng(9)
    plain = {"accuracy": [], "confidence": [], "nll": [], "auroc": []}
    for _ in range(4000):
        drawn = rng.integers(0, 250, 250)
        plain["accuracy"].append(correct[drawn].mean())
        plain["confidence"].append(confidence[drawn].mean())
        plain["nll"].append(loss[drawn].mean())
        low, high = (confidence[drawn][correct[drawn] == c] for c in (0, 1))
        wins = (high[:, None] > low).mean() + (high[:, None] == low).mean() / 2
        plain["auroc"].append(wins)
    for name, values in plain.items():
        tolerance = 0.15 * np.std(values)
        np.testing.assert_allclose(result[name], np.percentile(values, [2.5, 97.5]), atol=tolerance)


def test_bootstrap_is_the_same_in_small_chunks(monkeypatch):
    confidence, correct = calibrated_rows(100, 7)
    whole = metrics.bootstrap_intervals(confidence, correct, {}, resamples=37)
    monkeypatch.setattr("cogcalib_jax.metrics.bootstrap._CHUNK_ELEMENTS", 1000)
    parts = metrics.bootstrap_intervals(confidence, correct, {}, resamples=37)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


def test_bootstrap_does_not_offer_an_interval_for_ece():
    result = metrics.summarize(*option_rows(30), resamples=20)
    assert set(result["ci95"]) == {"accuracy", "nll", "brier", "auroc", "confidence"}
