"""Prompt templates: an example becomes the text before the answer and one text per option.

A template is text alone, so that whoever asks the trained model elsewhere can rebuild its prompts
from the pieces (`calibration.json` beside an adapter carries them).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Literal, NamedTuple

from cogcalib_jax.data.example import BadRow, Example


class Prompt(NamedTuple):
    """`completions[i]` is what is appended to `prompt` for option i."""

    prompt: str
    completions: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """The pieces of a prompt, in their order.

    `passage` and `question` may hold {passage} and {question}; what stands for an option {letter}
    (A, B ...), {choice} (its text), {sentence} (the same with a capital and a full stop) and
    {label} (as its row labels it: the letter, but "1" in some rows of ARC).
    """

    passage: str
    """left out where an example has no passage"""
    question: str
    option: str | tuple[str, ...]
    """once for each option; or a text for each, in their order"""
    end: str
    completion: str | tuple[str, ...]
    """what follows the prompt as the answer; or the text of each answer itself, of which there may
    be more than options"""
    stop: str = ""
    """ends the answer to an open question, in training and where a model writes one itself"""
    start: str = ""
    """what stands before every question: solved ones, the header of a chat"""
    cut: Literal["middle", "end"] = "middle"
    """what a passage that is too long loses"""

    def __call__(self, example: Example) -> Prompt:
        """Raises BadRow for more options than letters, and an open question that would not end."""
        if example.is_open and not self.stop:
            raise BadRow("is an open question, and this prompt has options; use --data.prompt qa")
        uses_letters = "{letter}" in "".join((*self.option, *self.completion))
        if uses_letters and len(example.choices) > len(ascii_uppercase):
            raise BadRow(
                f"has {len(example.choices)} choices, more than letters; use --data.prompt cloze"
            )
        options = _options(example)
        texts = {"passage": example.passage, "question": example.question}
        pieces = [
            self.start,
            self.passage.format(**texts) if example.passage else "",
            self.question.format(**texts),
            *_for_each(self.option, options),
            self.end,
        ]
        if isinstance(self.completion, str):
            completions = _for_each(self.completion, options)
        else:
            completions = self.completion
        stop = self.stop if example.is_open else ""
        return Prompt("".join(pieces), tuple(text + stop for text in completions))

    def solved(self, example: Example) -> Prompt:
        """The prompt of `example` with its right answer alone, without what stops it."""
        prompt, completions = self(example)
        right = completions[example.answer]
        return Prompt(prompt, (right.removesuffix(self.stop) if example.is_open else right,))

    def after(self, shots: Sequence[Example]) -> "Template":
        """This template with solved questions before every prompt, a blank line after each."""
        solved = (f"{prompt}{answer}" for prompt, (answer,) in map(self.solved, shots))
        return replace(self, start="".join(text + "\n\n" for text in solved))


def _options(example: Example) -> list[dict[str, str]]:
    """What an option's piece may hold, for each option."""
    letters = ascii_uppercase.ljust(len(example.choices))
    labels = example.extra.get("labels")
    # A user's row may have a field of this name that means something else.
    if not isinstance(labels, list | tuple) or len(labels) != len(example.choices):
        labels = letters
    return [
        {"letter": letter, "choice": choice, "sentence": sentence(choice), "label": label}
        for letter, choice, label in zip(letters, example.choices, labels, strict=False)
    ]


def _for_each(piece: str | tuple[str, ...], options: list[dict[str, str]]) -> list[str]:
    pieces = [piece] * len(options) if isinstance(piece, str) else piece
    return [text.format(**one) for text, one in zip(pieces, options, strict=False)]


def sentence(text: str) -> str:
    """`text` with a capital first letter and a full stop."""
    text = text if text.endswith(".") else f"{text}."
    return text[0].upper() + text[1:]


PROMPTS: dict[str, Template] = {
    # Multiple choice by letter.
    "letters": Template(
        passage="{passage}\n",
        question="{question}",
        option="\n{letter}. {choice}",
        end="\nAnswer:",
        completion=" {letter}",
    ),
    # The question is continued by the option's own text.
    "cloze": Template(
        passage="{passage}\n", question="{question}", option="", end="", completion=" {choice}"
    ),
    # An open question, whose answer is a line.
    "qa": Template(
        passage="{passage}\n\n",
        question="Question: {question}",
        option="",
        end="\nAnswer:",
        completion=" {choice}",
        stop="\n",
    ),
}
