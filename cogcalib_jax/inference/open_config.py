"""How open questions are answered, and which confidences are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from cogcalib_jax.errors import check


@dataclass(frozen=True)
class OpenConfig:
    """Answers written freely: how long they may be, and what tells how sure the model is."""

    max_new_tokens: int = 32
    """most tokens of an answer, the one that ends it included"""
    samples: int = 10
    """answers sampled per question for the confidence `agreement`; 0 leaves it out"""
    temperature: float = 1.0
    """of those samples; at 1 agreement estimates the probability of the greedy answer itself"""
    p_true: bool = True
    """ask the model whether its answer is true, for the confidence `p_true`"""

    def __post_init__(self) -> None:
        check(self.max_new_tokens >= 1, "max_new_tokens", "must be an integer of at least 1")
        check(self.samples >= 0, "samples", "must be an integer of at least 0")
        check(0 < self.temperature <= 1e6, "temperature", "must be above 0 and at most a million")
