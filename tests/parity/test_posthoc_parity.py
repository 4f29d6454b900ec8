"""Label smoothing against torch, and the fitted temperature against scikit-learn and netcal."""

import pytest

torch = pytest.importorskip("torch")
netcal_scaling = pytest.importorskip("netcal.scaling")
pytest.importorskip("sklearn")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from scipy.optimize import minimize_scalar  # noqa: E402
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.frozen import FrozenEstimator  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402

from cogcalib_jax.inference.posthoc import fit_temperature  # noqa: E402
from cogcalib_jax.inference.predictions import Predictions  # noqa: E402
from cogcalib_jax.method.config import MethodConfig  # noqa: E402
from cogcalib_jax.method.loss import gated_loss  # noqa: E402
from cogcalib_jax.method.terms import TERMS, Rows  # noqa: E402
from tests.inference.test_posthoc import calibration  # noqa: E402


@pytest.mark.parametrize("weight", [0.1, 0.5, 3.0])
def test_the_loss_with_ls_on_all_data_is_torchs_label_smoothing(weight):
    """CE + a LS = (1 + a) times torch's with eps = a / (1 + a); normalised, exactly torch's."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (7, 11)).astype(np.float32)
    targets = rng.integers(0, 11, 7)
    nll = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(targets), reduction="none"
    )
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(targets),
        label_smoothing=weight / (1 + weight),
        reduction="sum",
    )
    cal = TERMS.make("ls")(Rows(jnp.asarray(logits), jnp.asarray(targets)))
    for normalise, factor in ((False, 1 + weight), (True, 1.0)):
        method = MethodConfig(name="ls", weight=weight, normalise=normalise).build()
        ones = jnp.ones(7)
        sums = gated_loss(jnp.asarray(nll.numpy()), cal, method, jnp.float32(0), ones, ones, None)
        np.testing.assert_allclose(sums.loss, factor * theirs.item(), rtol=1e-5)


@pytest.mark.parametrize("scale", [3.0, 0.5])
def test_the_temperature_equals_netcals_and_scikit_learns_optimum(scale):
    predictions = calibration(scale=scale, n=600)
    # Both peers want a probability for every class of every row.
    keep = predictions.mask.all(-1)
    predictions = type(predictions)(
        predictions.logprobs[keep], predictions.tokens[keep], predictions.answers[keep], "sum"
    )
    ours = fit_temperature(predictions)

    def nll(inverse):
        scaled = np.exp(inverse * predictions.logprobs)
        probs = scaled / scaled.sum(-1, keepdims=True)
        return log_loss(predictions.answers, probs, labels=range(4))

    found = minimize_scalar(nll, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-9})
    np.testing.assert_allclose(ours, 1 / found.x, rtol=1e-4)

    theirs = netcal_scaling.TemperatureScaling()
    theirs.fit(predictions.probs, predictions.answers)
    scaled = theirs.transform(predictions.probs)
    replaced = type(predictions)(
        predictions.logprobs, predictions.tokens, predictions.answers, "sum", temperature=ours
    )
    np.testing.assert_allclose(replaced.probs, scaled, atol=1e-4)


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose decision scores are its inputs."""

    def fit(self, scores, answers):
        self.classes_ = np.unique(answers)
        return self

    def decision_function(self, scores):
        return scores

    def predict(self, scores):
        return self.classes_[np.argmax(scores, -1)]


@pytest.mark.parametrize("scale", [3.0, 0.5])
def test_the_temperature_equals_scikit_learns(scale):
    predictions = calibration(scale=scale, n=600)
    keep = predictions.mask.all(-1)
    scores, answers = predictions.logprobs[keep], predictions.answers[keep]
    ours = fit_temperature(Predictions(scores, predictions.tokens[keep], answers, "sum"))
    frozen = FrozenEstimator(Scores().fit(scores, answers))
    theirs = CalibratedClassifierCV(frozen, method="temperature").fit(scores, answers)
    inverse = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    np.testing.assert_allclose(ours, 1 / inverse, rtol=1e-4)
