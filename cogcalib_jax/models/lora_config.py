"""Where a decoder has low-rank adapters, and how large they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cogcalib_jax.configlib import check, often, rename, setting

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
LAYER_PROJECTIONS = ATTENTION_PROJECTIONS + MLP_PROJECTIONS
ALL_LINEAR = "all-linear"
LARGEST_RANK = 2**16
LORA_TARGETS = (*LAYER_PROJECTIONS, "lm_head", ALL_LINEAR)

# The names that PEFT gives to these fields are the ones that users know.
for old, new in {
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "dropout": "lora_dropout",
}.items():
    rename(f"lora.{old}", f"lora.{new}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021): W + lora_alpha / r * B A, with W frozen.

    The fields have the names of PEFT's LoraConfig.
    """

    r: int = often(8, of_adapter=True)
    """rank: rows of A, columns of B"""
    lora_alpha: float = setting(16.0, of_adapter=True)
    """the update is scaled by lora_alpha / r"""
    target_modules: tuple[str, ...] = often(("q_proj", "v_proj", "lm_head"), of_adapter=True)
    """projections with an adapter; all-linear means the seven of every layer, without lm_head"""
    lora_dropout: float = 0.0
    """share of A's inputs that is dropped while training"""

    def __post_init__(self) -> None:
        check(
            1 <= self.r <= LARGEST_RANK,
            "r",
            f"must be an integer from 1 to {LARGEST_RANK}, wider than which is no layer",
        )
        alpha = self.lora_alpha
        check(math.isfinite(alpha) and alpha > 0, "lora_alpha", "must be a positive number")
        check(0 <= self.lora_dropout < 1, "lora_dropout", "must be at least 0 and below 1")
        allowed = ", ".join(LORA_TARGETS)
        check(len(self.target_modules) > 0, "target_modules", f"must name a layer ({allowed})")
        unknown = [name for name in self.target_modules if name not in LORA_TARGETS]
        check(
            not unknown,
            "target_modules",
            f"must name layers of the model; {', '.join(unknown)} matches none"
            f" (allowed: {allowed})",
        )

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.lora_alpha / self.r

    @property
    def modules(self) -> frozenset[str]:
        """The projections `target_modules` names, with all-linear written out."""
        expanded = set(self.target_modules) - {ALL_LINEAR}
        if ALL_LINEAR in self.target_modules:
            expanded |= set(LAYER_PROJECTIONS)
        return frozenset(expanded)


@dataclass(frozen=True)
class UncertainLora(LoraConfig):
    """LoRA whose A is a normal distribution around lora_A, independent in its entries, with
    standard deviations lora_A_root squared: the posterior of BLoB (Wang et al. 2024, section 3.1).
    """
