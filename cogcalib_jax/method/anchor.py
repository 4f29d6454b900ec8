"""Anchors: questions without answers, on which a term holds the model near something.

A step adds `weight * mean term over its anchor rows` to its mean loss. The gate has no say in it:
it decides about examples with an answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import jax

from cogcalib_jax.configlib import FieldError, check, setting
from cogcalib_jax.errors import UserError
from cogcalib_jax.method.terms import TERMS, Term


@dataclass(frozen=True)
class Anchor:
    """The term on anchor rows as the training step takes it: a pytree whose numbers are leaves."""

    term: Term
    weight: float | jax.Array


jax.tree_util.register_dataclass(Anchor, data_fields=["term", "weight"], meta_fields=[])


@dataclass(frozen=True)
class AnchorConfig:
    """Questions without answers, and the term that holds the model on them."""

    path: str | None = setting(None, place=True)
    """file of questions with choices, as for eval.py --predict (answers are not read); unset: none.
    They are asked with the run's own prompt, and the term sees the classes of method.space"""
    rows_per_step: int = 8
    """questions per update, over all devices and micro-batches"""
    term: str = "kl"
    """term that needs no right answer, with settings if wanted: kl, ls, mbls(margin=5), ecp"""
    weight: float | None = None
    """weight of the mean term beside the mean loss; unset: the term's own default; 0 only measures
    it"""

    def __post_init__(self) -> None:
        check(self.rows_per_step >= 1, "rows_per_step", "must be an integer of at least 1")
        check(
            self.weight is None or 0 <= self.weight < math.inf,
            "weight",
            "must be a finite number of at least 0, or unset",
        )
        try:
            term = TERMS.make(self.term)
        except UserError as error:
            raise FieldError("term", str(error)) from error
        allowed = ", ".join(entry.name for entry in TERMS if without_target(entry.cls))
        check(
            without_target(type(term)),
            "term",
            f"must be a term that needs no right answer (allowed: {allowed})",
        )
        for field in fields(self)[1:]:
            check(
                self.path is not None or getattr(self, field.name) == field.default,
                field.name,
                f"must be {field.default} without anchor.path, the file of questions",
            )

    def build(self) -> Anchor:
        """Return the term and its weight as the training step takes them."""
        term = TERMS.make(self.term)
        return Anchor(term, term.default_weight if self.weight is None else self.weight)


def without_target(term: type[Term]) -> bool:
    """Return whether a term can be computed for each row that has neither answer nor gate."""
    looks_elsewhere = term.needs_target or term.needs_gate or term.needs_classes
    return not looks_elsewhere and term.per == "row" and term.combine == "add"
