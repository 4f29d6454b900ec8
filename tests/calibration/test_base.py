"""What holds for every calibrator: JSON, masks, rows in any order, and what is refused."""

import json

import numpy as np
import pytest

from cogcalib_jax.calibration import (
    CALIBRATORS,
    Calibrator,
    TemperatureScaler,
    equal_weights,
    register_calibrator,
)
from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics import InvalidRows
from tests.calibration.rows import with_start
from tests.method.registered import own_names


@register_calibrator("flat", label="Flat")
class Flat(Calibrator):
    """A share of the uniform distribution, as a user may write one."""

    share: float = 0.5

    fitted = {"accuracy_": 0}

    def _fit(self, rows):
        self.accuracy_ = float(np.mean(rows.scores.argmax(-1) == rows.labels))
        return self.accuracy_ > 0

    def _transform(self, rows):
        return rows.mask / rows.mask.sum(-1, keepdims=True)


SPECS = ["flat(share=0.25)", "vector(l2=0.1)", "mixture(use_prior=true)", *own_names(CALIBRATORS)]


def fit(spec, rows=slice(None), **settings):
    scores, labels, mask, start = with_start(**settings)
    calibrator = CALIBRATORS.make(spec)
    return calibrator.fit(scores[rows], labels[rows], mask=mask[rows], start_scores=start[rows])


def transform(calibrator, rows=slice(None), **settings):
    scores, _, mask, start = with_start(**settings)
    return calibrator(scores[rows], mask=mask[rows], start_scores=start[rows])


@pytest.mark.parametrize("spec", SPECS)
def test_json_gives_the_very_same_numbers(spec):
    fitted = fit(spec)
    stored = fitted.to_json()
    assert stored["calibrator"] == fitted.name and stored["n_rows_"] == 400
    read = Calibrator.from_json(json.loads(json.dumps(stored, allow_nan=False)))
    assert CALIBRATORS.spec(read) == CALIBRATORS.spec(fitted)
    assert read.to_json() == stored and read.warning == fitted.warning
    np.testing.assert_array_equal(transform(read, seed=5), transform(fitted, seed=5))


@pytest.mark.parametrize("spec", SPECS)
def test_probabilities_are_of_the_options_that_exist(spec):
    _, _, mask, _ = with_start(seed=3)
    probs = transform(fit(spec), seed=3)
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-12)
    assert np.all(probs[~mask] == 0) and np.all(probs >= 0)


@pytest.mark.parametrize("spec", SPECS)
def test_neither_the_order_of_rows_nor_a_constant_nor_an_absent_score_matters(spec):
    scores, labels, mask, start = with_start()
    order = np.random.default_rng(9).permutation(len(scores))
    fitted, shuffled = fit(spec), fit(spec, order)
    np.testing.assert_allclose(transform(shuffled), transform(fitted), atol=1e-6)
    absent = np.where(mask, scores - np.arange(len(scores))[:, None] % 7, np.nan)
    moved = CALIBRATORS.make(spec).fit(absent, labels, mask=mask, start_scores=start - 2)
    np.testing.assert_allclose(transform(moved), transform(fitted), atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_fit_returns_itself_and_leaves_its_arrays_alone(spec):
    scores, labels, mask, start = with_start()
    kept = scores.copy()
    calibrator = CALIBRATORS.make(spec)
    probs = calibrator.fit_transform(scores, labels, mask=mask, start_scores=start)
    np.testing.assert_array_equal(probs, transform(calibrator))
    np.testing.assert_array_equal(scores, kept)
    with pytest.raises(ValueError, match=r"not fitted; call fit\(scores, labels\) first"):
        CALIBRATORS.make(spec).transform(scores, mask=mask, start_scores=start)
    with pytest.raises(ValueError, match="not fitted"):
        CALIBRATORS.make(spec).to_json()


def test_those_that_need_a_start_or_classes_say_so():
    names = ("temperature", "vector", "platt", "isotonic", "mixture", "linear_mixture", "daca")
    needs = {name: CALIBRATORS.make(name) for name in names}
    assert [n for n, c in needs.items() if c.needs_start] == ["mixture", "linear_mixture", "daca"]
    assert [n for n, c in needs.items() if not c.needs_labels] == ["daca"]
    assert [n for n, c in needs.items() if c.needs_classes] == ["vector"]
    assert CALIBRATORS.make("mixture(use_prior=true)").needs_classes
    scores, labels, mask, start = with_start()
    with pytest.raises(InvalidRows, match=r"start_scores is None; expected \[400, 4\] numbers"):
        needs["mixture"].fit(scores, labels, mask=mask)
    with pytest.raises(InvalidRows, match=r"start_scores has shape \(400, 3\)"):
        needs["mixture"].fit(scores, labels, mask=mask, start_scores=start[:, :3])
    for spec in ("vector", "mixture(use_prior=true)"):
        with pytest.raises(InvalidRows, match="scores has 3 options: expected 4"):
            transform(fit(spec), options=3)


GOOD = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("scores", "labels", "mask", "message"),
    [
        (GOOD[0], [0, 1], None, r"scores has shape \(3,\): expected \[rows, options\]"),
        (GOOD[:0], [], None, "scores has shape"),
        ([[0, np.nan, 0]], [0], None, "scores, row 0, option 1: nan is not a finite number"),
        ([[0, 1, -np.inf]], [0], None, "row 0, option 2: -inf is not a finite number"),
        (GOOD, [0], None, r"labels has shape \(1,\): expected \(2,\)"),
        (GOOD, [0.0, 1.0], None, "labels has dtype float64: expected integer"),
        (GOOD, [0, 3], None, "labels, row 1: 3 is no option's index"),
        (GOOD, [0, 2], [3, 2], "labels, row 1: 2 is the index of an option that does not exist"),
        (GOOD, [0, 1], [[True] * 3] * 3, "option_mask has shape"),
        ([[0.2, 0.8], [1, 0]], [0, 1], None, r"scores are probabilities.*Give np.log\(scores\)"),
        ([["a", "b"]], [0], None, "scores must be an array of numbers"),
    ],
)
def test_arrays_that_mean_nothing_are_refused_by_name(scores, labels, mask, message):
    with pytest.raises(InvalidRows, match=message):
        TemperatureScaler().fit(scores, labels, mask=mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrator": "temprature"}, "calibrator is 'temprature'; expected one of temperature"),
        ({"calibrator": ["temperature"]}, "expected one of temperature"),
        ({"temperature_": 0.0}, "temperature_ is 0; expected a positive number; fit it again"),
        ({"temperature_": "1.0"}, "temperature_ is '1.0'; expected a finite number"),
        ({"temperature_": [1.0]}, "expected a finite number"),
        ({"temperature_": None}, "expected a finite number"),
        ({"temperature_": float("nan")}, "expected a finite number"),
        ({"n_rows_": 1.5}, "n_rows_ is 1.5; expected int"),
        ({"converged_": 1}, "converged_ is 1; expected bool"),
        ({"more": 1}, "calibrator temperature has temperature_, .*more; expected temperature_"),
    ],
)
def test_damaged_json_is_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message):
        Calibrator.from_json(fit("temperature").to_json() | change)
    with pytest.raises(UserError, match="expected an object"):
        Calibrator.from_json([])


@pytest.mark.parametrize(
    ("spec", "change"),
    [
        ("vector", {"scale_": [1.0, 2.0]}),
        ("vector", {"l2": -1.0}),
        ("vector", {"scale_": [[1.0] * 4]}),
        ("isotonic", {"knots_": []}),
        ("isotonic", {"knots_": [0.5, 0.4], "values_": [0.1, 0.2]}),
        ("isotonic", {"knots_": [0.4, 0.5], "values_": [0.1, 1.2]}),
        ("linear_mixture", {"start_weight_": 1.5}),
        ("linear_mixture", {"start_temperature_": -1.0}),
        ("mixture", {"use_prior": "yes"}),
    ],
)
def test_numbers_that_fit_no_map_are_refused(spec, change):
    with pytest.raises(UserError, match=f"(?i)calibrator.*{spec}"):
        Calibrator.from_json(fit(spec).to_json() | change)


def test_a_class_that_is_not_registered_works_and_has_no_json():
    class Own(Flat):
        pass

    scores, labels, mask, _ = with_start()
    own = Own().fit(scores, labels, mask=mask)
    assert own(scores, mask=mask).shape == scores.shape
    with pytest.raises(ValueError, match="Own is not registered; use register_calibrator first"):
        own.to_json()


def test_numbers_too_large_to_work_with_are_told_and_are_no_warning(recwarn):
    stored = fit("mixture").to_json() | {"tuned_weight_": 1e308, "start_weight_": -1e308}
    with pytest.raises(UserError, match="calibrator mixture gives no probabilities .not a number"):
        transform(Calibrator.from_json(stored))
    assert not recwarn.list


WEIGHTED = ["temperature", "vector(l2=0.1)", "mixture", "linear_mixture", "daca"]


@pytest.mark.parametrize("spec", WEIGHTED)
def test_a_row_of_weight_two_counts_as_two_rows(spec):
    scores, labels, mask, start = with_start(n=120)
    twice = np.concatenate([np.arange(120), np.arange(40)])
    weights = np.where(np.arange(120) < 40, 2.0, 1.0)
    one = CALIBRATORS.make(spec).fit(scores, labels, mask=mask, start_scores=start, weights=weights)
    two = CALIBRATORS.make(spec)
    two.fit(scores[twice], labels[twice], mask=mask[twice], start_scores=start[twice])
    found, wanted = (c(scores, mask=mask, start_scores=start) for c in (one, two))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_equal_weights_give_groups_of_any_size_the_same_say():
    weights = equal_weights([3, 1])
    np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 6, 1 / 2])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(InvalidRows, match="weights has"):
        TemperatureScaler().fit(np.eye(2, 3), [1, 1], weights=weights)
    with pytest.raises(InvalidRows, match="platt weighs all rows alike"):
        CALIBRATORS.make("platt").fit(np.eye(2, 3), [0, 2], weights=[1.0, 1.0])
    with pytest.raises(InvalidRows, match="labels is None; expected the right options"):
        TemperatureScaler().fit(np.eye(2, 3), None)
