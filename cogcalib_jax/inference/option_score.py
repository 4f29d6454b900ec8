"""The rules that turn an option's log-probability into its score.

A rule that training and scoring share is one field of a run, `option_score`. docs/evaluation.md
says what the softmax over such scores means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from cogcalib_jax.settings import rename

OptionScore = Literal["mean", "sum", "chars", "pmi"]
ChosenOptionScore = Literal["mean", "sum", "chars", "pmi", "auto"]
"""The rules a user may choose; `auto` becomes one of the others, once a run."""

DEFAULT_OPTION_SCORE: OptionScore = "mean"
# The field in files of calibration and, as evaluation.normalisation, in configs of older runs.
OLD_FIELD = "normalisation"
OLD_VALUES = {"token_mean": "mean"}
rename(f"evaluation.{OLD_FIELD}", "option_score", OLD_VALUES)


def score_options(
    rule: OptionScore,
    logprobs: np.ndarray,
    tokens: np.ndarray,
    characters: np.ndarray | None = None,
    priors: np.ndarray | None = None,
) -> np.ndarray:
    """Score every option by `rule`.

    Args:
        rule: mean: log-probability per token; sum: log-probability; chars: log-probability per
            character; pmi: log-probability minus the one without the question.
        logprobs: `[n, k]` float64 nats, summed over the tokens of an option.
        tokens: `[n, k]` int, 0 if there is no such option.
        characters: `[n, k]` int, see `Predictions.characters`; only for chars.
        priors: `[n, k]` float64 nats, see `Predictions.priors`; only for pmi.

    Returns:
        `[n, k]` float64; options that do not exist keep their NaN.

    Raises:
        ValueError: the rule needs what was not given.
    """
    if rule == "pmi" and priors is not None:
        return logprobs - priors
    if rule == "sum":
        return logprobs
    length = {"mean": tokens, "chars": characters}.get(rule)
    if length is not None:
        return logprobs / np.maximum(length, 1)
    raise ValueError(f"option_score = {rule}: these predictions lack what the rule needs")


def stored_option_score(content: Mapping[str, Any]) -> OptionScore | None:
    """The rule that a `calibration.json` names, also by its old field; None if it names none."""
    name = content.get("option_score", content.get(OLD_FIELD))
    name = OLD_VALUES.get(name, name) if isinstance(name, str) else name
    return name if name in get_args(OptionScore) else None
