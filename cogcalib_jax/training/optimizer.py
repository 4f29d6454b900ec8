"""The learning rate over a phase, and the optimizer that takes it."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import optax

from cogcalib_jax.training.config import TrainingConfig


# Cached: equal arguments give the very same function, by which compiled updates are found again.
@lru_cache
def learning_rate_schedule(
    peak: float, kind: Literal["linear", "cosine", "constant"], steps: int, warmup_fraction: float
) -> optax.Schedule:
    """Warm-up from zero to `peak`, then the named decay to zero at `steps`."""
    warmup = round(warmup_fraction * steps)
    rest = max(1, steps - warmup)
    decay = {
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[kind]()
    if warmup == 0:
        return decay
    # The first update already moves: it gets peak / warmup, not zero.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    config: TrainingConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW on clipped gradients."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )
