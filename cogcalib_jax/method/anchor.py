"""Anchors: questions without answers, on which a term holds the model near something.

A step adds `weight * mean term over its anchor rows` to its mean loss. The gate has no say in it:
it decides about examples with an answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from cogcalib_jax.errors import FieldError, UserError, check
from cogcalib_jax.method.registries import TERMS
from cogcalib_jax.settings import setting

if TYPE_CHECKING:
    from cogcalib_jax.method.method import Anchor
    from cogcalib_jax.method.terms import Term


DEFAULT_TERM = "kl"


@dataclass(frozen=True)
class AnchorConfig:
    """Questions without answers, and the term that holds the model on them."""

    path: str | None = setting(None, place=True)
    """file of questions with choices, as for eval.py --predict (answers are not read); unset: none.
    They are asked with the run's own prompt, and the term sees the classes of method.space"""
    rows_per_step: int = 8
    """questions per update, over all devices and micro-batches"""
    term: str = DEFAULT_TERM
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
        # The default is one, and names are looked up with JAX, which reading a config spares.
        if self.term != DEFAULT_TERM:
            _check_term(self.term)
        for field in fields(self)[1:]:
            check(
                self.path is not None or getattr(self, field.name) == field.default,
                field.name,
                f"must be {field.default} without anchor.path, the file of questions",
            )

    def build(self) -> Anchor:
        """Return the term and its weight as the training step takes them."""
        # Imported here: it brings JAX, and a config is read without.
        from cogcalib_jax.method.method import Anchor

        term = TERMS.make(self.term)
        return Anchor(term, term.default_weight if self.weight is None else self.weight)


def _check_term(spec: str) -> None:
    try:
        term = TERMS.make(spec)
    except UserError as error:
        raise FieldError("term", str(error)) from error
    allowed = ", ".join(entry.name for entry in TERMS if without_target(entry.cls))
    check(
        without_target(type(term)),
        "term",
        f"must be a term that needs no right answer (allowed: {allowed})",
    )


def without_target(term: type[Term]) -> bool:
    """Return whether a term can be computed for each row that has neither answer nor gate."""
    looks_elsewhere = term.needs_target or term.needs_gate or term.needs_classes
    return not looks_elsewhere and term.per == "row" and term.combine == "add"
