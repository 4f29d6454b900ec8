"""The threshold, fitted on the calibration split: one forward pass, or its answers generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flax import nnx

from cogcalib_jax.data.batching import eval_batches, length_buckets
from cogcalib_jax.data.example import Encoded, EncodedSplit
from cogcalib_jax.inference.open_ended import OpenPredictor
from cogcalib_jax.inference.passes import SplitPass
from cogcalib_jax.method.gates import ThresholdFit, fit_threshold
from cogcalib_jax.training.nonfinite import require_finite


def example_nll(
    losses: SplitPass, lora: nnx.State, encoded: Sequence[Encoded], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """NLL `[rows]` in nats and correctness `[rows]` bool of each example, in the split's order.

    Raises UserError when an NLL is not finite.
    """
    split = EncodedSplit.of(encoded)
    buckets = length_buckets(split.lengths)
    rows, (nll, correct) = losses(lora, eval_batches(split, batch_size, buckets))
    order = np.argsort(rows)
    require_finite("the NLL", nll[order], [e.id for e in encoded])
    return nll[order].astype(np.float64), correct[order] > 0


def refit(
    losses: SplitPass,
    lora: nnx.State,
    calibration: Sequence[Encoded],
    batch_size: int,
    answers: OpenPredictor | None = None,
) -> ThresholdFit:
    """The threshold that best separates right from wrong answers on `calibration` as of `lora`.

    Right is what `losses` calls correct; with `answers`, what is generated and matches exactly.
    """
    nll, correct = example_nll(losses, lora, calibration, batch_size)
    if answers is not None:
        correct = answers.answers(lora, calibration).exact_match
    return fit_threshold(nll, correct)
