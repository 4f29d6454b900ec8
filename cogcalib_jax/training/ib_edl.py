"""IB-EDL: one pass gives the options a Dirichlet distribution, and training keeps it uninformed.

Li et al., ICLR 2025, "Calibrating LLMs with Information-Theoretic Evidential Deep Learning"
(arXiv 2502.06351). The logits of the options are means m of pre-evidence, and as many logits of
other tokens give its standard deviations s = softplus(...). With z = m + s * normal noise, evidence
is softplus(z), and alpha = evidence + 1 are the parameters of the Dirichlet distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.models.lora import Head
from cogcalib_jax.training.variant import Variant


def pre_evidence(
    head: Head,
    hidden: jax.Array,
    option_ids: jax.Array,
    scale_ids: tuple[int, ...],
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return means and standard deviations of pre-evidence, `[batch, options]` float32.

    Args:
        hidden: `[batch, hidden]` where the answers begin.
        option_ids: `[batch, options]` tokens of the options.
        scale_ids: tokens whose logits give the deviations of the first, second ... option.
    """
    options = option_ids.shape[1]
    scales = jnp.broadcast_to(jnp.asarray(scale_ids[:options], option_ids.dtype), option_ids.shape)
    ids = jnp.concatenate([option_ids, scales], 1)
    logits = head.option_logits(hidden, ids, dropout_key)
    return logits[:, :options], jax.nn.softplus(logits[:, options:])


def dirichlet(mean: jax.Array, deviation: jax.Array, noise: jax.Array) -> jax.Array:
    """Return alpha, `[draws, ..., options]`; noise: likewise, standard normal."""
    return jax.nn.softplus(mean + deviation * noise) + 1.0


def bayes_risk(alpha: jax.Array, is_target: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the expected squared error under Dirichlet distributions, `[...]`.

    Args:
        alpha: `[..., options]`.
        is_target: the same, 1 for the right option.
        mask: the same, 1 for options that exist.
    """
    total = jnp.sum(alpha * mask, -1, keepdims=True)
    p = alpha / total
    return jnp.sum(mask * ((is_target - p) ** 2 + p * (1 - p) / (total + 1)), -1)


def bottleneck(mean: jax.Array, deviation: jax.Array, mask: jax.Array) -> jax.Array:
    """Return KL(N(mean, deviation^2) || N(0, 1)) summed over options, `[...]` nats."""
    each = mean**2 + deviation**2 - 2 * jnp.log(deviation) - 1
    return 0.5 * jnp.sum(mask * each, -1)


@dataclass(frozen=True)
class IbEdl(Variant):
    """The variant of training: the Bayes risk, averaged over draws, and `beta` times the KL."""

    scale_ids: tuple[int, ...]
    """the tokens whose logits give deviations: at least one for each option"""
    beta: float = 1e-5
    draws: int = 20

    def identity(self) -> dict[str, Any]:
        return {"ib_edl": [list(self.scale_ids), self.beta, self.draws]}

    def losses(
        self,
        head: Head,
        hidden: jax.Array,
        batch: Batch,
        key: jax.Array,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        ids, mask = batch.option_ids, (batch.option_mask > 0).astype(jnp.float32)
        mean, deviation = pre_evidence(head, hidden[:, 0], ids, self.scale_ids, dropout_key)
        noise = jax.random.normal(key, (self.draws, *mean.shape))
        is_target = (jnp.arange(ids.shape[1]) == batch.answer[:, None]).astype(jnp.float32)
        risk = bayes_risk(dirichlet(mean, deviation, noise), is_target, mask)
        return jnp.mean(risk, 0) + self.beta * bottleneck(mean, deviation, mask)
