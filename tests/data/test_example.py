"""What a split of encoded rows knows about all of them."""

from cogcalib_jax.data.example import Encoded, EncodedSplit, Example


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
