"""The share of fine-tuning data that the model knows already, set at will: the paper's ratio study.

Every share has the same number of rows (as many as there are of the rarer kind) and rows are drawn
from one order, so that two shares differ in as few rows as they can. A share of 0 is "known data
deleted"; its fair rival is the natural share at the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.errors import UserError, check


@dataclass(frozen=True)
class CompositionConfig:
    """The composition of the fine-tuning rows."""

    known_share: float | Literal["natural"] | None = None
    """share of rows the model knows, at equal size for every share; natural: as they come, at that
    size, too; unset: all rows as they are"""
    by: Literal["start", "world"] = "start"
    """who says what is known: the NLL rule on the style-adapted model, or the world itself"""

    def __post_init__(self) -> None:
        share = self.known_share
        if share not in (None, "natural"):
            check(0 <= share <= 1, "known_share", "must be from 0 to 1, natural, or unset")

    @property
    def asks_the_world(self) -> bool:
        """Return whether the rows themselves must say what the base knows."""
        return self.known_share is not None and self.by == "world"

    @property
    def words(self) -> str:
        """The known share in words, if `known_share` is set."""
        share = self.known_share
        return "the natural share" if share == "natural" else f"{share:.0%}"


def known_to_the_world(rows: EncodedSplit) -> np.ndarray:
    """Return knownness `[rows]` bool as the world states it; UserError for rows of other tasks."""
    if not all("known" in row.example.extra for row in rows):
        raise UserError(
            "composition.by = world: these rows do not say what the base knows, as only the"
            " world's do; use composition.by start"
        )
    return np.array([bool(row.example.extra["known"]) for row in rows])


def compose(
    rows: EncodedSplit,
    config: CompositionConfig,
    known_at_start: Callable[[], np.ndarray],
    seed: int,
) -> EncodedSplit:
    """The rows that are trained on, in their order; all of them without `known_share`.

    known_at_start: knownness `[rows]` bool by the method's rule on the style-adapted model. Raises
    UserError where all rows are known, or none is.
    """
    if config.known_share is None:
        return rows
    known = known_to_the_world(rows) if config.by == "world" else known_at_start()
    sizes = int(known.sum()), int((~known).sum())
    total = min(sizes)
    if total == 0:
        kind = "known" if sizes[1] == 0 else "unknown"
        raise UserError(
            f"composition.known_share = {config.known_share}: all {len(rows)} fine-tuning rows"
            f" are {kind}, so no share can be composed; use other rows, or leave it unset"
        )
    share = known.mean() if config.known_share == "natural" else config.known_share
    wanted = round(float(share) * total)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0xC0DE])))
    order = rng.permutation(len(rows))
    chosen = np.concatenate([order[known[order]][:wanted], order[~known[order]][: total - wanted]])
    return EncodedSplit(rows[i] for i in sorted(chosen))
