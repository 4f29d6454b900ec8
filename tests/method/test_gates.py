"""The threshold fit against scikit-learn, its guaranteed properties, and every gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from cogcalib_jax.method.gates import GATES, GateInputs, fit_threshold

# Few distinct values, so that ties are common.
ROWS = st.lists(
    st.tuples(st.integers(0, 12).map(lambda n: n / 4), st.booleans()), min_size=1, max_size=60
)


@given(ROWS)
def test_the_threshold_is_scikit_learns_best_point(rows):
    nll = np.array([r[0] for r in rows])
    correct = np.array([r[1] for r in rows])
    fit = fit_threshold(nll, correct)
    known = nll <= fit.threshold
    assert fit.n_known == known.sum()
    if correct.all():
        assert fit.threshold == np.inf and fit.note
        return
    if not correct.any():
        assert fit.threshold == -np.inf and fit.note
        return
    fpr, tpr, thresholds = roc_curve(correct, -nll, drop_intermediate=False)
    best = np.argmax(tpr - fpr)
    assert fit.threshold == -thresholds[best]
    np.testing.assert_allclose([fit.tpr, 1 - fit.tnr], [tpr[best], fpr[best]], atol=1e-12)
    np.testing.assert_allclose(fit.tpr, known[correct].mean(), atol=1e-12)
    np.testing.assert_allclose(fit.tnr, (~known)[~correct].mean(), atol=1e-12)
    np.testing.assert_allclose(fit.auroc, roc_auc_score(correct, -nll), atol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_with_two_options_nll_separates_right_from_wrong_perfectly(seed):
    """NLL < ln 2 implies correct and NLL > ln K implies wrong, so at K = 2 TPR + TNR = 2."""
    rng = np.random.default_rng(seed)
    p_answer = rng.uniform(0.01, 0.99, 50)
    p_answer[:2] = 0.3, 0.7
    fit = fit_threshold(-np.log(p_answer), p_answer > 0.5)
    assert fit.tpr + fit.tnr == 2
    assert fit.threshold < np.log(2)


def test_no_fixed_grid_can_lose_a_threshold_between_its_points():
    fit = fit_threshold(
        np.array([0.501, 0.502, 0.503, 0.504]), np.array([True, True, False, False])
    )
    assert fit.threshold == 0.502
    assert fit.tpr + fit.tnr == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_nll_is_refused_with_its_row(bad):
    with pytest.raises(ValueError, match="row 1"):
        fit_threshold(np.array([0.1, bad]), np.array([True, False]))


def mask_of(gate, nll, threshold=1.0, labels=None, weight=None, seed=0):
    nll = jnp.asarray(nll, jnp.float32)
    labels = jnp.zeros_like(nll) if labels is None else jnp.asarray(labels, jnp.float32)
    weight = jnp.ones_like(nll) if weight is None else jnp.asarray(weight, jnp.float32)
    inputs = GateInputs(nll, jnp.float32(threshold), labels, weight > 0)
    return np.asarray(GATES.make(gate)(inputs, jax.random.key(seed)))


def test_each_gate_flags_what_its_name_says():
    nll, labels = [0.2, 1.0, 3.0, 0.5], [0, 1, 1, 0]
    assert mask_of("all", nll).tolist() == [1, 1, 1, 1]
    assert mask_of("adaptive", nll).tolist() == [1, 1, 0, 1]
    assert mask_of("frozen_threshold", nll).tolist() == [1, 1, 0, 1]
    assert mask_of("unknown", nll).tolist() == [0, 0, 1, 0]
    assert mask_of("frozen_labels", nll, labels=labels).tolist() == labels
    assert mask_of("frozen_random", nll, labels=labels).tolist() == labels
    assert mask_of("oracle", nll, labels=labels).tolist() == labels


def test_the_soft_gate_is_a_sigmoid_around_the_threshold():
    nll, width = np.array([0.2, 1.0, 3.0], np.float32), 0.25
    got = mask_of(f"soft(width={width})", nll)
    np.testing.assert_allclose(got, 1 / (1 + np.exp((nll - 1.0) / width)), rtol=1e-5)
    assert got[1] == 0.5
    sharp = mask_of("soft(width=0.001)", nll[[0, 2]])
    np.testing.assert_allclose(sharp, mask_of("adaptive", nll[[0, 2]]), atol=1e-6)


def test_labels_of_a_gate_are_the_known_rows_or_as_many_at_random():
    known = np.array([1.0, 0, 0, 1, 0, 1, 0, 0])
    assert GATES.make("frozen_labels").labels(known, 3).tolist() == known.tolist()
    drawn = GATES.make("frozen_random").labels(known, 3)
    assert drawn.sum() == known.sum() and drawn.tolist() != known.tolist()
    assert drawn.tolist() == GATES.make("frozen_random").labels(known, 3).tolist()


def test_the_random_gate_keeps_the_share_and_never_flags_filler_rows():
    nll = np.linspace(0, 2, 40)
    weight = np.ones(40)
    weight[30:] = 0
    known = ((nll <= 1) & (weight > 0)).sum()
    masks = np.stack([mask_of("random", nll, weight=weight, seed=s) for s in range(30)])
    assert (masks.sum(-1) == known).all()
    assert not masks[:, 30:].any()
    # Independent of NLL: over draws every real row is flagged sometimes, none always.
    share = masks[:, :30].mean(0)
    assert share.min() > 0 and share.max() < 1


@pytest.mark.parametrize("threshold,expected", [(np.inf, 1.0), (-np.inf, 0.0)])
def test_infinite_thresholds_mean_all_or_nothing(threshold, expected):
    assert (mask_of("adaptive", [0.0, 5.0], threshold) == expected).all()
