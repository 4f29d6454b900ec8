"""TFB: the largest noise on LoRA's A that does not change what a trained adapter answers.

Shi et al. 2024, "Training-Free Bayesianization for Low-Rank Adapters of Large Language Models"
(arXiv 2412.05723). With the thin SVD B = U diag(d) V^T, B' = U diag(d) and A' = V^T A are the same
adapter. Row i of A' gets independent normal noise with the standard deviation sigma / d_i, which is
noise sigma in every direction U_i of the weights. One sigma holds for the whole model: the largest
at which the answers to anchor questions change by at most a tolerance.

Two public implementations differ from each other by a factor of 500 in what the tolerance means,
for one divides the change by the number of anchors; both return the smallest sigma that fails, or
the upper bound without a trial. Here the tolerance is of the change itself, and sigma has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.baselines.registry import BASELINES
from cogcalib_jax.baselines.rows import Tfb
from cogcalib_jax.baselines.sampling import DropoutPredictor
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError, any_of
from cogcalib_jax.inference.config import (
    DEFAULT_OPTION_SCORE,
    WITHOUT_PRIOR,
    EvaluationConfig,
    OptionScore,
)
from cogcalib_jax.inference.predict import Predictor
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.parameters import (
    ROOT,
    FrozenModel,
    map_parameters,
    split_model,
    with_dropout,
    with_uncertainty,
)
from cogcalib_jax.training.variant import require_plain_lora

# Added to every d, so that a direction that the adapter does not use has a finite deviation.
SMALLEST = 1e-6
FILE = "tfb.json"
"""the search for sigma"""
# The choice of anchors draws from another stream of a seed than training and predictions.
STREAM = 5


@dataclass(frozen=True)
class Fitted:
    """An adapter with noise on A."""

    sigma: float
    """0 if no sigma passed"""
    record: dict[str, Any]
    """what was tried, as JSON"""
    lora: nnx.State
    """A', B' and roots of the standard deviations of A'"""
    predictor: DropoutPredictor
    seed: int

    def __call__(self, encoded: EncodedSplit) -> Predictions:
        """Return the probabilities of options, averaged over draws."""
        return self.predictor(self.lora, encoded, self.seed)

    @property
    def words(self) -> str:
        """A sentence on sigma."""
        if self.sigma == 0:
            return "no noise passed: the answers are those of the adapter itself; lower `low`"
        most = "; the upper bound, raise `high`" if self.record["at_bound"] else ""
        return f"sigma {self.sigma:.4g} on {self.record['anchors']} anchors{most}"


def factorised(lora: nnx.State) -> nnx.State:
    """Return the same adapter as A' = V^T A and B' = U diag(d) of the thin SVD of every B.

    Signs are fixed by the largest entry of each column of V, so that devices and meshes agree.
    """
    require_plain_lora(lora, "tfb")
    flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(lora)}
    shardings = jax.tree.map(lambda x: x.sharding, lora)

    @jax.jit
    def pair(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, d, vt = jnp.linalg.svd(b, full_matrices=False)
        largest = jnp.take_along_axis(vt, jnp.argmax(jnp.abs(vt), -1, keepdims=True), -1)
        sign = jnp.where(largest < 0, -1.0, 1.0)
        new_a = jnp.einsum("...kr,...ri->...ki", sign * vt, a, precision="highest")
        return new_a, u * d[..., None, :] * sign.mT

    def replaced(path: tuple[str, ...], leaf: nnx.Variable) -> nnx.Variable:
        a, b = (flat[*path[:-1], name] for name in ("lora_A", "lora_B"))
        return leaf.replace(pair(a, b)[0 if path[-1] == "lora_A" else 1])

    return jax.device_put(map_parameters(replaced, lora), shardings)


def with_noise(lora: nnx.State, sigma: float, layers: str) -> nnx.State:
    """Return the parameters with the deviations of `sigma`.

    Args:
        lora: of `factorised`, with any roots of standard deviations beside.
        sigma: 0: none.
        layers: all; or last: the head if it has an adapter, else the last layer.
    """
    flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(lora)}
    head = any(path[0] == "lm_head" for path in flat)

    def replaced(path: tuple[str, ...], leaf: nnx.Variable) -> nnx.Variable:
        if path[-1] != ROOT:
            return leaf
        old = leaf.get_value()
        d = jnp.linalg.norm(flat[*path[:-1], "lora_B"], axis=-2)
        root = jnp.broadcast_to(jnp.sqrt(sigma / (d + SMALLEST))[..., None], old.shape)
        if layers == "last" and path[0] != "lm_head":
            kept = jnp.arange(old.shape[0]) == (-1 if head else old.shape[0] - 1)
            root = jnp.where(kept[:, None, None], root, 0.0)
        return leaf.replace(jax.device_put(root, old.sharding))

    return map_parameters(replaced, lora)


def change(criterion: str, before: np.ndarray, after: np.ndarray, answers: np.ndarray) -> float:
    """Return how far the answers to anchors changed.

    Args:
        criterion: flips: the share of questions with another likeliest option; pseudo_nll:
            |NLL(after) - NLL(before)| / NLL(before) of the likeliest options before; gold_nll: the
            same of the right ones.
        before: `[n, options]` log-probabilities of the adapter itself, -inf where there is none.
        after: the same of the average over draws.
        answers: `[n]` the right options.
    """
    own = before.argmax(-1)
    if criterion == "flips":
        return float(np.mean(after.argmax(-1) != own))
    labels = (own if criterion == "pseudo_nll" else answers)[:, None]
    nll = [-np.take_along_axis(x, labels, -1).mean() for x in (before, after)]
    return float(abs(nll[1] - nll[0]) / max(nll[0], np.finfo(np.float64).tiny))


def largest_passing(
    measure: Callable[[float], float], tolerance: float, low: float, high: float, steps: int
) -> tuple[float, list[dict[str, float]]]:
    """Return the largest sigma that was found to pass, and every trial.

    Binary search on the logarithm, for a change that grows with sigma. `high` is returned if it
    passes, and 0 if `low` does not.
    """
    trials: list[dict[str, float]] = []

    def passes(sigma: float) -> bool:
        found = measure(sigma)
        trials.append({"sigma": sigma, "change": found})
        return found <= tolerance

    if passes(high):
        return high, trials
    if not passes(low):
        return 0.0, trials
    for _ in range(steps):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low, trials


def parse(spec: str | Tfb) -> Tfb:
    """Return the settings that `spec` names (UserError if it names something else)."""
    made = BASELINES.make(spec)
    if not isinstance(made, Tfb) or made.of != Tfb.of:
        raise UserError(f"tfb is {spec}; expected tfb or tfb(SETTING=VALUE, ...) without of")
    return made


def fit(
    settings: Tfb,
    model: FrozenModel,
    lora: nnx.State,
    mesh: Mesh,
    anchors: EncodedSplit,
    config: EvaluationConfig,
    option_score: OptionScore = DEFAULT_OPTION_SCORE,
    seed: int = 0,
) -> Fitted:
    """Return the adapter `lora` with the largest noise that passes on `anchors`.

    Args:
        anchors: questions with options, of which `settings.anchors` are drawn; their answers are
            read by gold_nll alone.
        config: batch size, and passes a question.
        option_score: the rule that scores options, not pmi.
        seed: of anchors and draws.

    Raises:
        UserError: what it cannot be fitted to or on.
    """
    if anchors.is_open or not anchors:
        raise UserError("tfb: anchors are open questions; expected questions with options")
    if option_score == "pmi":
        raise UserError(
            f"tfb: option_score pmi has no prior under noise; use {any_of(WITHOUT_PRIOR)}"
        )
    order = np.random.default_rng([seed, STREAM]).permutation(len(anchors))
    chosen = EncodedSplit.of([anchors[i] for i in sorted(order[: settings.anchors])])
    answers = np.array([row.answer for row in chosen])
    before = Predictor(model, mesh, config, option_score)(lora, chosen).log_option_probs
    # The noise takes the place of dropout.
    uncertain = with_uncertainty(with_dropout(model.merge(factorised(lora)), 0.0), seed)
    structure, parameters = split_model(uncertain)
    predictor = DropoutPredictor(structure, mesh, config, option_score, "noise_draws")

    def measure(sigma: float) -> float:
        noisy = with_noise(parameters, sigma, settings.layers)
        after = predictor(noisy, chosen, seed).log_option_probs
        return change(settings.criterion, before, after, answers)

    sigma, trials = largest_passing(
        measure, settings.most, settings.low, settings.high, settings.steps
    )
    record = {
        "sigma": sigma,
        "at_bound": sigma == settings.high,
        "criterion": settings.criterion,
        "tolerance": settings.most,
        "layers": settings.layers,
        "anchors": len(chosen),
        "trials": trials,
    }
    return Fitted(sigma, record, with_noise(parameters, sigma, settings.layers), predictor, seed)
