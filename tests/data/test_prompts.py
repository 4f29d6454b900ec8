"""What a prompt looks like, letter by letter."""

import pytest

from cogcalib_jax.data.example import BadRow, Example
from cogcalib_jax.data.prompts import PROMPTS


def example(n_choices=2, passage=""):
    choices = tuple(f"choice {i}" for i in range(n_choices))
    return Example(id="x", question="Which?", choices=choices, answer=0, passage=passage)


def test_letters_show_passage_question_and_options_and_end_before_the_answer():
    prompt, completions = PROMPTS["letters"](example(passage="Some text."))
    assert prompt == "Some text.\nWhich?\nA. choice 0\nB. choice 1\nAnswer:"
    assert completions == (" A", " B")


def test_letters_without_a_passage_have_no_empty_line():
    assert PROMPTS["letters"](example())[0].startswith("Which?\nA. ")


def test_letters_serve_26_options_and_no_more():
    assert PROMPTS["letters"](example(26)).completions[-1] == " Z"
    with pytest.raises(BadRow, match="27 choices"):
        PROMPTS["letters"](example(27))


def test_cloze_continues_the_question_with_the_options_text():
    prompt, completions = PROMPTS["cloze"](example(27, passage="Some text."))
    assert prompt == "Some text.\nWhich?"
    assert completions[:2] == (" choice 0", " choice 1")
