"""Prompt templates: an example becomes the text before the answer and one text per option."""

from collections.abc import Callable
from string import ascii_uppercase
from typing import NamedTuple

from cogcalib_jax.data.example import BadRow, Example


class Prompt(NamedTuple):
    """`completions[i]` is what is appended to `prompt` for option i; it begins with a space."""

    prompt: str
    completions: tuple[str, ...]


Template = Callable[[Example], Prompt]


def letters(example: Example) -> Prompt:
    """Multiple choice by letter: passage, question, "A. text" a line, "Answer:" -> " A"."""
    if len(example.choices) > len(ascii_uppercase):
        raise BadRow(
            f"has {len(example.choices)} choices, more than letters; use --data.prompt cloze"
        )
    names = ascii_uppercase[: len(example.choices)]
    options = [f"{name}. {text}" for name, text in zip(names, example.choices, strict=True)]
    lines = [*_context(example), *options, "Answer:"]
    return Prompt("\n".join(lines), tuple(f" {name}" for name in names))


def cloze(example: Example) -> Prompt:
    """The question is continued by the option's own text: passage, question -> " text"."""
    return Prompt("\n".join(_context(example)), tuple(f" {text}" for text in example.choices))


def _context(example: Example) -> list[str]:
    return [example.passage, example.question] if example.passage else [example.question]


PROMPTS: dict[str, Template] = {"letters": letters, "cloze": cloze}
