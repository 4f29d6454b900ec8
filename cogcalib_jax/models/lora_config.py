"""Where a decoder has low-rank adapters, and how large they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cogcalib_jax.configlib import check, often

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
LAYER_PROJECTIONS = ATTENTION_PROJECTIONS + MLP_PROJECTIONS
ALL_LINEAR = "all-linear"
LARGEST_RANK = 2**16
LORA_TARGETS = (*LAYER_PROJECTIONS, "lm_head", ALL_LINEAR)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021): W + alpha / rank * B A, with W frozen."""

    rank: int = often(8)
    """rows of A, columns of B"""
    alpha: float = 16.0
    """the update is scaled by alpha / rank"""
    targets: tuple[str, ...] = often(("q_proj", "v_proj", "lm_head"))
    """projections with an adapter; all-linear means the seven of every layer, without lm_head"""
    dropout: float = 0.0
    """share of A's inputs that is dropped while training"""

    def __post_init__(self) -> None:
        check(
            1 <= self.rank <= LARGEST_RANK,
            "rank",
            f"must be an integer from 1 to {LARGEST_RANK}, wider than which is no layer",
        )
        check(math.isfinite(self.alpha) and self.alpha > 0, "alpha", "must be a positive number")
        check(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")
        check(len(self.targets) > 0, "targets", f"must name a layer ({', '.join(LORA_TARGETS)})")
        unknown = [name for name in self.targets if name not in LORA_TARGETS]
        check(
            not unknown,
            "targets",
            f"must name layers of the model; {', '.join(unknown)} matches none"
            f" (allowed: {', '.join(LORA_TARGETS)})",
        )

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    @property
    def modules(self) -> frozenset[str]:
        """The projections `targets` names, with all-linear written out."""
        expanded = set(self.targets) - {ALL_LINEAR}
        if ALL_LINEAR in self.targets:
            expanded |= set(LAYER_PROJECTIONS)
        return frozenset(expanded)


@dataclass(frozen=True)
class UncertainLora(LoraConfig):
    """LoRA whose A is a normal distribution around lora_A, independent in its entries, with
    standard deviations lora_A_root squared: the posterior of BLoB (Wang et al. 2024, section 3.1).
    """
