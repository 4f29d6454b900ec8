"""A question whose option scores are stored with an adapter, so that a server can be checked."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.inference.predictions import Predictions
from cogcalib_jax.models.parameters import Path, map_parameters

# Nats a token. Servers compute in bfloat16 with kernels of their own, so that the same weights give
# log-probabilities that differ by about 0.1; a tolerance below the smaller bound would refuse them.
TOLERANCES = (0.05, 0.25)


def reduced_adapter(lora: nnx.State, *, touches_head: bool) -> nnx.State:
    """Return the adapter with a part switched off, as a faulty server might apply it.

    The part is the head's where the adapter has one, for servers drop that part alone; otherwise
    it is the whole adapter.
    """

    def switch_off(path: Path, leaf: nnx.Variable) -> nnx.Variable:
        if path[-1] != "lora_B" or (touches_head and path[0] != "lm_head"):
            return leaf
        return leaf.replace(jnp.zeros_like(leaf.get_value()))

    return map_parameters(switch_off, lora)


def choose_probe(
    encoded: EncodedSplit, adapted: Predictions, reduced: Predictions
) -> dict[str, Any] | None:
    """Return the question on which the adapter and its reduced form differ most, for a JSON file.

    adapted, reduced: predictions of `encoded` with the adapter and with `reduced_adapter`. Log-
    probabilities are summed over an option's tokens. The tolerance is in nats a token: half the
    difference between the two models on this question, within `TOLERANCES`. None if a score is not
    a finite number.
    """
    if not np.isfinite(adapted.logprobs[adapted.mask] - reduced.logprobs[adapted.mask]).all():
        return None
    gaps = np.abs(adapted.logprobs - reduced.logprobs) / np.maximum(adapted.tokens, 1)
    largest = np.nanmax(gaps, axis=1)
    row = int(np.argmax(largest))
    chosen = encoded[row]
    return {
        "prompt": chosen.prompt,
        "completions": list(chosen.completions),
        "prompt_ids": list(chosen.prompt_ids),
        "completion_ids": [list(ids) for ids in chosen.completion_ids],
        "option_logprobs": adapted.logprobs[row, : len(chosen.completions)].tolist(),
        "tolerance": float(np.clip(largest[row] / 2, *TOLERANCES)),
    }
