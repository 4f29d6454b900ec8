"""Fine-tuning rows with a set share of known ones, at equal size, drawn from one order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax.errors import UserError
from cogcalib_jax.training.config import CompositionConfig, compose
from tests.inference.tiny import questions

ROWS = questions(40)
KNOWN = np.array([row.example.extra["known"] for row in ROWS])


def composed(share, by="start", known=KNOWN, seed=0):
    return compose(ROWS, CompositionConfig(known_share=share, by=by), lambda: known, seed)


def test_without_a_share_the_rows_are_as_they_come():
    assert compose(ROWS, CompositionConfig(), lambda: pytest.fail("not asked"), 0) is ROWS


@given(st.floats(0, 1), st.integers(0, 5))
def test_every_share_has_the_same_size_and_the_asked_part_of_known_rows(share, seed):
    rows = composed(share, seed=seed)
    total = min(KNOWN.sum(), (~KNOWN).sum())
    assert len(rows) == total
    assert sum(row.example.extra["known"] for row in rows) == round(share * total)
    places = [ROWS.index(row) for row in rows]
    assert places == sorted(places)


def test_the_natural_share_is_that_of_the_rows_at_the_size_of_the_others():
    mostly = np.arange(40) % 4 > 0
    rows = composed("natural", known=mostly)
    assert len(rows) == len(composed(0.0, known=mostly)) == 10
    assert sum(mostly[ROWS.index(row)] for row in rows) == 8  # three in four, rounded to even
    assert composed(0.75, known=mostly) == rows


def test_shares_differ_in_as_few_rows_as_they_can():
    few, more = (set(row.id for row in composed(share)) for share in (0.2, 0.6))
    known = {row.id for row in ROWS if row.example.extra["known"]}
    assert few & known < more & known
    assert more - known < few - known


def test_the_world_or_the_start_says_what_is_known():
    inverted = ~KNOWN
    assert not any(row.example.extra["known"] for row in composed(1.0, known=inverted))
    assert all(row.example.extra["known"] for row in composed(1.0, "world", inverted))


def test_seeds_draw_other_rows():
    share = KNOWN.mean()
    assert composed(share, seed=0) != composed(share, seed=1)


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(UserError, match="all 40 fine-tuning rows are known"):
        composed(0.5, known=np.ones(40, bool))
    bare = [replace(row, example=replace(row.example, extra={})) for row in ROWS]
    with pytest.raises(UserError, match="composition.by = world"):
        compose(type(ROWS)(bare), CompositionConfig(0.5, "world"), lambda: KNOWN, 0)
    with pytest.raises(UserError, match="known_share"):
        CompositionConfig(known_share=1.5)
