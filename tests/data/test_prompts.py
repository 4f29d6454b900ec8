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


def open_example(**fields):
    return Example(
        **{"id": "x", "question": "Who?", "choices": ("Ada",), "answer": 0, **fields},
        aliases=("Ada", "Ada L."),
    )


def test_qa_asks_for_a_line_and_ends_it():
    prompt, completions = PROMPTS["qa"](open_example(passage="Some text."))
    assert prompt == "Some text.\n\nQuestion: Who?\nAnswer:"
    assert completions == (" Ada\n",)
    assert PROMPTS["qa"](open_example()).prompt == "Question: Who?\nAnswer:"


def test_the_option_of_a_closed_question_has_no_stop_text():
    assert PROMPTS["qa"](example()).completions == (" choice 0", " choice 1")


@pytest.mark.parametrize("name", ["letters", "cloze"])
def test_a_prompt_that_would_not_end_refuses_an_open_question(name):
    with pytest.raises(BadRow, match="open question.*--data.prompt qa"):
        PROMPTS[name](open_example())
