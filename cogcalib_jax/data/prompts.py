"""Prompt templates: an example becomes the text before the answer and one text per option.

A template is text alone, so that whoever asks the trained model elsewhere can rebuild its prompts
from the pieces (`calibration.json` beside an adapter carries them).
"""

from dataclasses import dataclass
from string import ascii_uppercase
from typing import NamedTuple

from cogcalib_jax.data.example import BadRow, Example


class Prompt(NamedTuple):
    """`completions[i]` is what is appended to `prompt` for option i; it begins with a space."""

    prompt: str
    completions: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """The pieces of a prompt, in their order; {choice} and {letter} are those of each option."""

    passage: str
    """left out where an example has no passage"""
    question: str
    option: str
    """once for each option"""
    end: str
    completion: str
    """what follows the prompt as the answer"""
    stop: str = ""
    """ends the answer to an open question, in training and where a model writes one itself"""

    def __call__(self, example: Example) -> Prompt:
        """Raises BadRow for more options than letters, and an open question that would not end."""
        if example.is_open and not self.stop:
            raise BadRow("is an open question, and this prompt has options; use --data.prompt qa")
        uses_letters = "{letter}" in self.option + self.completion
        if uses_letters and len(example.choices) > len(ascii_uppercase):
            raise BadRow(
                f"has {len(example.choices)} choices, more than letters; use --data.prompt cloze"
            )
        names = ascii_uppercase if uses_letters else [""] * len(example.choices)
        options = [
            {"letter": letter, "choice": choice}
            for letter, choice in zip(names, example.choices, strict=False)
        ]
        pieces = [
            self.passage.format(passage=example.passage) if example.passage else "",
            self.question.format(question=example.question),
            *(self.option.format(**one) for one in options),
            self.end,
        ]
        stop = self.stop if example.is_open else ""
        return Prompt(
            "".join(pieces), tuple(self.completion.format(**one) + stop for one in options)
        )


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
