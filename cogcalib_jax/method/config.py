"""What is regularised, how strongly, on which examples and in which space.

`method.name` is a short word for a (term, gate) pair; the resolved config always spells the pair
out. A name that contradicts an explicit term or gate is an error, never a silent choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from cogcalib_jax.configlib import check

Term = Literal["none", "ls", "mbls", "ecp"]
Gate = Literal[
    "all",
    "adaptive",
    "frozen_threshold",
    "frozen_labels",
    "unknown",
    "random",
    "frozen_random",
    "oracle",
]
Space = Literal["vocab", "options"]
Reduction = Literal["mean", "sum"]

# name -> (term, gate). The three Co-methods are the paper's; ls, mbls and ecp on all data are the
# ablation that shows what the gate is worth.
ALIASES: dict[str, tuple[Term, Gate]] = {
    "sft": ("none", "all"),
    "ls": ("ls", "all"),
    "mbls": ("mbls", "all"),
    "ecp": ("ecp", "all"),
    "cols": ("ls", "adaptive"),
    "combls": ("mbls", "adaptive"),
    "coecp": ("ecp", "adaptive"),
}

# A mean over 128,256 entries turns an entropy of 1.26 nats into 9.8e-6, so the entropy penalty
# sums over the vocabulary; label smoothing and its margin form are means by their definition.
DEFAULT_REDUCTION: dict[Term, Reduction] = {
    "none": "mean",
    "ls": "mean",
    "mbls": "mean",
    "ecp": "sum",
}

# Weights of the terms where a preset does not say otherwise. mbls: the MbLS authors' 0.1. ls:
# CE + a LS equals label smoothing with eps = a / (1 + a), so 0.1 is eps = 0.09. ecp: 0.1, the
# middle of the range searched by Pereyra et al. 2017.
DEFAULT_WEIGHT: dict[Term, float] = {"none": 0.0, "ls": 0.1, "mbls": 0.1, "ecp": 0.1}


@dataclass(frozen=True)
class MethodConfig:
    """The calibration term and the gate that decides which examples it applies to."""

    name: Literal["sft", "ls", "mbls", "ecp", "cols", "combls", "coecp"] | None = None
    """short word for a term and a gate; unset means: as term and gate say"""
    term: Term | None = None
    """calibration term: none, ls (label smoothing), mbls (margin-based), ecp (entropy penalty)"""
    gate: Gate | None = None
    """which examples the term applies to; adaptive = NLL at most the refitted threshold"""
    weight: float | None = None
    """weight of the term beside cross-entropy; unset means the term's own default"""
    space: Space = "vocab"
    """the classes the term smooths over: the whole vocabulary, or the question's options"""
    reduction: Reduction | None = None
    """sum or mean over the classes; unset means mean for ls and mbls, sum for ecp"""
    margin: float = 10.0
    """mbls only: logit margin, in nats (Liu et al. 2022 use 10)"""
    normalise: bool = False
    """divide each example's loss by one plus the weight it received"""

    def __post_init__(self) -> None:
        check(
            self.weight is None or 0 <= self.weight < math.inf,
            "weight",
            "must be a finite number of at least 0",
        )
        check(0 <= self.margin < math.inf, "margin", "must be a finite number of at least 0")
        if self.name is not None:
            term, gate = ALIASES[self.name]
            check(
                self.term in (None, term),
                "term",
                f"contradicts method.name {self.name}, which means term {term} (drop one of them)",
            )
            check(
                self.gate in (None, gate),
                "gate",
                f"contradicts method.name {self.name}, which means gate {gate} (drop one of them)",
            )

    @property
    def label(self) -> str:
        """The name of the run's folder in a comparison: the alias where one fits."""
        resolved = self.resolve()
        pairs = {pair: name for name, pair in ALIASES.items()}
        if resolved.term == "none":
            return "sft"
        return pairs.get((resolved.term, resolved.gate), f"{resolved.term}-{resolved.gate}")

    def resolve(self) -> MethodConfig:
        """Every field spelled out: aliases expanded and defaults filled in.

        A config that names nothing is CoLS, the paper's strongest method on most of its tasks.
        """
        if self.name is not None:
            term, gate = ALIASES[self.name]
        else:
            term = self.term or "ls"
            gate = self.gate or ("all" if term == "none" else "adaptive")
        return replace(
            self,
            term=term,
            gate=gate,
            weight=DEFAULT_WEIGHT[term] if self.weight is None else self.weight,
            reduction=self.reduction or DEFAULT_REDUCTION[term],
        )


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy, the NLL that is compared with the threshold, and "answers correctly"."""

    space: Space = "vocab"
    """classes of cross-entropy, of the gate's NLL and of the correctness rule"""
    tokens: Reduction = "mean"
    """how the answer's tokens make up one example: mean or sum"""
    correct: Literal["argmax", "exact_match"] = "argmax"
    """what the threshold calls right: argmax tokens or option; exact_match generates (open only)"""

    def __post_init__(self) -> None:
        check(
            self.correct == "argmax" or self.space == "vocab",
            "correct",
            "must be argmax where loss.space is options: exact_match is for open questions",
        )
