"""A method as the training step takes it."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from cogcalib_jax.method.config import Space
from cogcalib_jax.method.gates import Gate
from cogcalib_jax.method.terms import Term


@dataclass(frozen=True)
class Anchor:
    """The term on anchor rows as the training step takes it: a pytree whose numbers are leaves."""

    term: Term
    weight: float | jax.Array


jax.tree_util.register_dataclass(Anchor, data_fields=["term", "weight"], meta_fields=[])


@dataclass(frozen=True)
class Method:
    """A method as the training step takes it: a pytree whose numbers are leaves.

    Methods that differ in numbers only share one compiled step.
    """

    term: Term | None
    """None: plain cross-entropy"""
    gate: Gate
    weight: float | jax.Array
    """weight of the term beside cross-entropy"""
    space: Space
    """the classes the term sees: the whole vocabulary, or the question's options"""
    normalise: bool
    """whether an added term's loss is divided by one plus the weight that the example received"""
    anchor: Anchor | None = None
    """the term on anchor rows, in the same space; None without such rows"""

    @property
    def term_space(self) -> Space | None:
        """The space of the term; None without a term."""
        return None if self.term is None else self.space


jax.tree_util.register_dataclass(
    Method, data_fields=["term", "gate", "weight", "anchor"], meta_fields=["space", "normalise"]
)
