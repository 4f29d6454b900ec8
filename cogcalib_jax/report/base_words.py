"""The base on validation questions, in words: can it do the task in the form it is asked in?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cogcalib_jax.report.text import count, percent

BASE_FILE = "base.json"
LETTERS, TEXTS, OPEN = "letters", "texts", "open"
"""kinds of answers: letters of options, other options, open questions"""
FORM_IS_WRONG = 0.5
"""Probability mass on the letters below which the form is called wrong."""


def read_base(run: Path) -> dict[str, Any] | None:
    """Return what `base.json` of a run's folder holds; None for a run of an earlier release."""
    file = run / BASE_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def base_words(base: Mapping[str, Any]) -> list[str]:
    """Describe the base in one or two sentences; the second says what is wrong, if something is.

    base: as in `base.json`, see `runs.references.look_at_base`.
    """
    name = base["model"][0].upper() + base["model"][1:]
    right = (
        f"{name}, before training: {percent(base['accuracy'])} of"
        f" {count(base['n'], 'validation question')} right (95 % interval {percent(base['low'])} to"
        f" {percent(base['high'])})"
    )
    if base["kind"] == OPEN:
        lines = [f"{right}, by the reference answer word for word."]
    else:
        lines = [
            f"{right}; guessing {percent(base['chance'])}, always the commonest answer"
            f" {percent(base['commonest_answer'])}."
        ]
    if base["option_mass"] is not None and base["kind"] == LETTERS:
        lines[0] += (
            f" Its probability mass on the letters of the options: {base['option_mass']:.2f}."
        )
    wrong = _what_is_wrong(base)
    return [*lines, wrong] if wrong else lines


def _what_is_wrong(base: Mapping[str, Any]) -> str:
    name = base["model"][0].upper() + base["model"][1:]
    commands = " or ".join(base["try"])
    another = f" Try another form: {commands}" if commands else ""
    if base["kind"] == LETTERS and base["option_mass"] < FORM_IS_WRONG:
        return (
            "The form is wrong: after this prompt most of the probability lies on other tokens than"
            f" the letters, so the choice among them says little.{another}"
        )
    if base["low"] > base["chance"]:
        return ""
    if base["kind"] == LETTERS:
        return (
            f"{name} is at chance: it answers with a letter and does not know which one is"
            f" right.{another}"
        )
    if base["kind"] == OPEN:
        return (
            f"{name} answers next to nothing right: either the form is wrong for it, or it lacks"
            f" the knowledge.{another}"
        )
    return (
        f"{name} is at chance: either the form is wrong for it, or it lacks the knowledge.{another}"
    )
