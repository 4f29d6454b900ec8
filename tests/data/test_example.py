"""What a split of encoded rows knows about all of them."""

import pytest

from cogcalib_jax.data.example import Encoded, EncodedSplit, Example, exclude_one_another


def encoded(aliases=(), ids=((5,), (6,))):
    choices = aliases[:1] or ("yes", "no")
    example = Example(id="a", question="q?", choices=choices, answer=0, aliases=aliases)
    return Encoded(
        id="a",
        prompt="q?",
        completions=tuple(f" {choice}" for choice in choices),
        prompt_ids=(1, 2),
        completion_ids=ids[: len(choices)],
        answer=0,
        example=example,
    )


def test_an_open_answer_of_one_token_is_no_single_token_option():
    """Options space would find one option, which is always right."""
    open_split = EncodedSplit.of([encoded(("red", "crimson"))] * 2)
    assert open_split.is_open
    assert not open_split.single_token_options
    closed = EncodedSplit.of([encoded()] * 2)
    assert closed.single_token_options
    assert not closed.is_open
    assert not EncodedSplit().is_open


@pytest.mark.parametrize(
    ("completions", "exclusive"),
    [
        ([(5,), (6,)], True),
        ([(5, 1), (5, 2), (6,)], True),
        ([(7,), (5, 2), (5,)], False),
        ([(5, 2, 9), (4,), (5, 3), (5, 2)], False),
        ([(5,), (5,)], False),
    ],
)
def test_options_exclude_one_another_unless_one_begins_with_another(completions, exclusive):
    assert exclude_one_another(completions) is exclusive
    asked = Example("a", "q", tuple("abcd"[: len(completions)]), answer=0)
    other = Encoded("b", "q", ("x", "y"), (1,), ((5,), (6,)), 0, asked)
    texts = tuple(map(str, range(len(completions))))
    rows = [other, Encoded("a", "q", texts, (1,), tuple(completions), 0, asked)]
    assert EncodedSplit(rows).exclusive_options is exclusive
