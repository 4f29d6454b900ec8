"""The metrics against packages people use; where a convention differs, the difference is shown."""

import numpy as np
import pytest

from cogcalib_jax import metrics

torch = pytest.importorskip("torch")
torchmetrics_classification = pytest.importorskip("torchmetrics.functional.classification")
netcal_metrics = pytest.importorskip("netcal.metrics")
relplot = pytest.importorskip("relplot")


def rows(n, seed=0, slope=1.5):
    rng = np.random.default_rng(seed)
    chance = rng.beta(2, 1.5, n)
    confidence = 1 / (1 + ((1 - chance) / chance) ** slope)
    return confidence, (rng.random(n) < chance).astype(float)


def torchmetrics_error(confidence, correct, norm, bins=15):
    return float(
        torchmetrics_classification.binary_calibration_error(
            torch.from_numpy(confidence), torch.from_numpy(correct).long(), n_bins=bins, norm=norm
        )
    )


@pytest.mark.parametrize("n", [20, 1000])
def test_ece_and_mce_equal_torchmetrics(n):
    confidence, correct = rows(n)
    expected = torchmetrics_error(confidence, correct, "l1")
    assert metrics.ece(confidence, correct) == pytest.approx(expected, abs=1e-6)
    expected = torchmetrics_error(confidence, correct, "max")
    assert metrics.mce(confidence, correct) == pytest.approx(expected, abs=1e-6)


def test_torchmetrics_gives_confidence_one_a_bin_of_its_own():
    """Gaps of opposite sign at 1.0 and just below cancel in one bin and add up in two."""
    confidence = np.repeat([0.95, 1.0], 50)
    correct = np.repeat([1.0, 1.0, 0.0], [50, 40, 10])
    assert metrics.ece(confidence, correct) == pytest.approx((10 - 2.5) / 100)
    assert torchmetrics_error(confidence, correct, "l1") == pytest.approx((10 + 2.5) / 100)
    # With the rows at exactly 1 moved inside the last bin, both agree.
    inside = np.minimum(confidence, np.nextafter(1.0, 0.0))
    assert torchmetrics_error(inside, correct, "l1") == pytest.approx((10 - 2.5) / 100)


@pytest.mark.parametrize("n", [20, 1000])
def test_ece_and_mce_equal_netcal(n):
    confidence, correct = rows(n)
    expected = netcal_metrics.ECE(15).measure(confidence, correct.astype(int))
    assert metrics.ece(confidence, correct) == pytest.approx(expected, abs=1e-6)
    expected = netcal_metrics.MCE(15).measure(confidence, correct.astype(int))
    assert metrics.mce(confidence, correct) == pytest.approx(expected, abs=1e-6)


def test_netcal_equals_ours_at_confidence_one():
    confidence, correct = rows(500)
    confidence[:100] = 1.0
    expected = netcal_metrics.ECE(15).measure(confidence, correct.astype(int))
    assert metrics.ece(confidence, correct) == pytest.approx(expected, abs=1e-6)


def test_top_label_ece_of_several_options_equals_netcal_and_torchmetrics():
    rng = np.random.default_rng(0)
    probs, answers = rng.dirichlet(np.ones(5), 800), rng.integers(0, 5, 800)
    top = metrics.top_label(probs, np.ones_like(probs), answers)
    ours = metrics.ece(top.confidence, top.correct)
    assert ours == pytest.approx(netcal_metrics.ECE(15).measure(probs, answers), abs=1e-6)
    theirs = torchmetrics_classification.multiclass_calibration_error(
        torch.from_numpy(probs), torch.from_numpy(answers), num_classes=5, n_bins=15
    )
    assert ours == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("slope", [1.0, 1.2, 3.0])
@pytest.mark.parametrize("n", [1, 10, 500, 5000])
def test_smooth_ece_equals_relplot(n, slope):
    confidence, correct = rows(n, slope=slope)
    assert metrics.ece_smooth(confidence, correct) == pytest.approx(
        relplot.smECE(confidence, correct), abs=1e-6
    )


def test_smooth_ece_equals_relplot_at_narrow_bandwidths():
    """Many calibrated rows: a bandwidth below 0.01, where both grids grow."""
    rng = np.random.default_rng(4)
    for n in (40_000, 200_000):
        confidence = rng.uniform(0, 1, n)
        correct = (rng.random(n) < confidence).astype(float)
        theirs, width = relplot.smECE(confidence, correct, return_width=True)
        assert width < 0.01
        assert metrics.ece_smooth(confidence, correct) == pytest.approx(theirs, abs=1e-6)


def test_smooth_ece_equals_relplot_at_the_ends():
    confidence = np.repeat([0.0, 1.0, 0.5], [5, 20, 5])
    correct = np.tile([1.0, 0.0, 1.0], 10)
    assert metrics.ece_smooth(confidence, correct) == pytest.approx(
        relplot.smECE(confidence, correct), abs=1e-6
    )


def test_relplot_bins_confidence_one_apart():
    confidence, correct = np.array([1.0, 1.0, 0.95, 0.95]), np.array([1.0, 1.0, 0.0, 1.0])
    theirs = relplot.metrics.binnedECE(confidence, correct, nbins=10)
    assert theirs == pytest.approx(0.9 / 4)
    assert metrics.ece(confidence, correct, bins=10) == pytest.approx(0.9 / 4)
    # Opposite gaps at 1.0 and in (0.9, 1) cancel in one bin and add up in two.
    correct = np.array([1.0, 0.0, 1.0, 1.0])
    theirs = relplot.metrics.binnedECE(confidence, correct, nbins=10)
    assert theirs == pytest.approx(1.1 / 4)
    assert metrics.ece(confidence, correct, bins=10) == pytest.approx(0.9 / 4)


def test_torchmetrics_puts_the_eleventh_edge_one_unit_off():
    """A confidence of exactly 11/15 opens a bin here and stays in the one below there."""
    edge = 11 / 15
    confidence = np.concatenate([np.full(40, edge), np.full(60, edge - 0.03)])
    correct = np.repeat([1.0, 0.0, 1.0, 0.0], [35, 5, 30, 30])
    gaps = [40 * edge - 35, 60 * (edge - 0.03) - 30]  # of opposite sign
    assert metrics.ece(confidence, correct) == pytest.approx(np.abs(gaps).sum() / 100)
    assert torchmetrics_error(confidence, correct, "l1") == pytest.approx(abs(sum(gaps)) / 100)
    # One unit in the last place further up both agree.
    above = np.where(confidence == edge, np.nextafter(edge, 1), confidence)
    assert torchmetrics_error(above, correct, "l1") == pytest.approx(np.abs(gaps).sum() / 100)


def open_below(confidence, correct, bins=15):
    """The ECE of bins (lo, hi], as uncertainty-calibration 0.1.4 cuts them (`fast_bin`)."""
    index = np.searchsorted(np.arange(1, bins + 1) / bins, confidence)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return np.abs(gaps).sum() / len(confidence)


def test_uncertainty_calibration_closes_its_bins_above():
    """They agree unless confidences sit on an edge, as rounded ones do."""
    confidence, correct = rows(500)
    assert metrics.ece(confidence, correct) == pytest.approx(open_below(confidence, correct))
    rounded = np.round(confidence * 20) / 20
    assert abs(metrics.ece(rounded, correct) - open_below(rounded, correct)) > 0.002
    inside = np.where(rounded < 1, np.nextafter(rounded, 1), 1.0)
    assert open_below(inside, correct) == pytest.approx(metrics.ece(rounded, correct))
    calibration = pytest.importorskip("calibration")
    theirs = calibration.get_ece(rounded, correct.astype(int), num_bins=15, mode="marginal")
    assert open_below(rounded, correct) == pytest.approx(theirs)
