"""The anchor's config, and which terms can be computed without a right answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.errors import FieldError
from cogcalib_jax.method.config import AnchorConfig, without_target
from cogcalib_jax.method.terms import TERMS, Rows
from tests.method.registered import own_names
from tests.method.test_terms import GATE, LOGITS, START, TARGET


@pytest.mark.parametrize("name", own_names(TERMS))
def test_a_term_says_whether_it_looks_at_the_target(name):
    term = TERMS.make(name)
    rows = Rows(jnp.asarray(LOGITS), None, None, jnp.asarray(GATE), jnp.asarray(START))
    if term.needs_target:
        with pytest.raises(ValueError, match="no target; expected a term without needs_target"):
            term(rows)
    else:
        with_target = term(rows._replace(target=jnp.asarray(TARGET)))
        np.testing.assert_array_equal(term(rows), with_target)


def test_these_terms_can_hold_anchor_rows():
    allowed = {e.name for e in TERMS if without_target(e.cls)}
    assert allowed >= {"ls", "mbls", "ecp", "kl", "uniform"}
    assert not allowed & {"brier", "focal", "dual_focal", "mdca"}


def test_the_weight_is_the_terms_own_unless_it_is_given():
    assert AnchorConfig(path="x").build().weight == 1.0
    anchor = AnchorConfig(path="x", term="mbls(margin=3)", weight=0.0).build()
    assert (anchor.term, anchor.weight) == (TERMS.make("mbls(margin=3)"), 0.0)


@pytest.mark.parametrize(
    ("given", "field", "told"),
    [
        ({"term": "focal"}, "term", "needs no right answer .allowed: ls, mbls, ecp, kl, uniform"),
        ({"term": "mdca"}, "term", "needs no right answer"),
        ({"term": "kll"}, "term", "expected one of .* did you mean kl"),
        ({"rows_per_step": 0}, "rows_per_step", "at least 1"),
        ({"weight": -1.0}, "weight", "finite number of at least 0"),
        ({"path": "a/test.jsonl"}, "path", "must name other questions than style, train, .* test"),
        ({"carve": 5}, "carve", "must be unset beside anchor.path"),
        ({"path": None, "carve": 0}, "carve", "must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, field, told):
    with pytest.raises(FieldError, match=told) as caught:
        AnchorConfig(**({"path": "mine.csv"} | given))
    assert caught.value.field == field
