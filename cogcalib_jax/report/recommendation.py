"""The advice of a run: trust in its confidence, the adapter to take, and how to ask it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import command_line, program_words, reason_of, refusing_damage
from cogcalib_jax.report.load_run import Method, RunResults
from cogcalib_jax.report.text import (
    BASE,
    COMMONEST,
    TEXT_WIDTH,
    best_epoch_of,
    count,
    is_at_chance,
    is_tempered,
    percent,
    questions,
    short_name,
    tempered,
)
from cogcalib_jax.report.verdict import LEVEL

BASE_FILE = "base.json"
LETTERS, TEXTS, OPEN = "letters", "texts", "open"
OTHER_PROMPTS = {LETTERS: "cloze", TEXTS: "letters"}
"""kinds of answers: letters of options, other options, open questions"""
FORM_IS_WRONG = 0.5
"""Probability mass on the letters below which the form is called wrong."""
RECOMMENDED_FILE = "recommended.json"
VALIDATION_FILE = "validation.jsonl"
WRITTEN_AGAIN = "remove it and resume the run (--resume), which writes it again"
THE_RUN = "."
"""stands in `recommended.json` of a run of one method, whose own folder holds the adapter"""
SURE, FEWEST_SURE = 0.9, 20
"""confidence that a reader may call sure, and answers of which a share is given"""
SMALL_GAP, SMALL_ECE = 3.0, 0.1
"""points between confidence and accuracy, and an ECE, that a user may put up with"""
LONGEST_EXAMPLE = 200
"""Characters of a question that is shown as an example; a longer one is replaced by dots."""
BEST_EPOCH = best_epoch_of("")
_REFERENCES = {
    BASE: "the base as it was given",
    COMMONEST: "always giving the commonest answers",
}


def read_validation_nll(folder: Path) -> np.ndarray:
    """Return the NLL `[n]`, in nats, of the validation questions in a folder's `validation.jsonl`
    (UserError: a damaged file)."""
    file = folder / VALIDATION_FILE
    try:
        with refusing_damage(file, WRITTEN_AGAIN):
            lines = file.read_text(encoding="utf-8").splitlines()
            return np.array([float(json.loads(line)["nll"]) for line in lines])
    except OSError as error:
        raise UserError(f"{file}: damaged ({reason_of(error)}); {WRITTEN_AGAIN}") from error


@dataclass(frozen=True)
class Recommendation:
    """The words about the recommended adapter."""

    take: tuple[str, ...]
    """sentences: the method, where its adapter is, why, and how good it is"""
    example: str
    """a line of a file of questions; empty if the tool cannot ask this kind"""
    key: str
    """the method"""
    command: str
    """asks the questions of such a file; for open questions, evaluates the adapter again"""

    def as_text(self) -> str:
        """Return the lines for a terminal."""
        # The second is a path, which must stay whole.
        lines = [" ".join(self.take[:2])]
        lines += [textwrap.fill(line, TEXT_WIDTH) for line in self.take[2:]]
        lines.append(self.how_to_ask)
        if self.example:
            lines += [f"    {self.example}", "and run"]
        return "\n".join([*lines, f"    {self.command}"])

    @property
    def how_to_ask(self) -> str:
        """The words before the example and the command."""
        if self.example:
            return "Ask it: put one question a line into questions.jsonl, such as"
        return "Evaluate it on other questions:"


def recommendation(run: RunResults) -> Recommendation | None:
    """Return the words on `recommended.json`; None for a run of an earlier release."""
    file = run.folder / RECOMMENDED_FILE
    if not file.is_file():
        return None
    with refusing_damage(file, WRITTEN_AGAIN):
        chosen = json.loads(file.read_text(encoding="utf-8"))
        key = run.methods[0].key if chosen["method"] == THE_RUN else chosen["method"]
        methods = {method.key: method for method in run.methods}
        method = methods[key]
        folder = run.folder if chosen["method"] == THE_RUN else run.folder / key
        words = (_why(chosen), *_how_good(run, methods, method))
        asked = chosen["question"]
    opening = "Best of this run, not recommended" if chosen["not_better_than"] else "Take"
    take = (f"{opening}: {short_name(key)}.", f"Adapter: {folder / 'adapter'}", *words)
    asks = program_words("eval.py")
    if asked is None:
        return Recommendation(take, "", key, command_line(*asks, "--run", str(folder)))
    example = json.dumps(asked, ensure_ascii=False)
    if len(example) > LONGEST_EXAMPLE:
        example = '{"question": "...", "choices": ["...", "..."]}'
    command = ("--run", str(folder), "--predict", "questions.jsonl", "--out", "answers.jsonl")
    return Recommendation(take, example, key, command_line(*asks, *command))


def trust(run: RunResults, key: str) -> tuple[str, ...]:
    """Answer whether the confidence of a method can be trusted.

    The numbers are those of the test questions of the first task, with the temperature if one was
    fitted, as `--predict` gives them. The first sentence is the answer.
    """
    methods = {m.key: m for m in run.methods}
    method = methods.get(tempered(key), methods[key])
    m, p = method.metrics[run.tasks[0]], method.predictions[run.tasks[0]]
    n = questions(m)
    gap = 100 * (m["confidence"] - m["accuracy"])
    floor = m["ece_noise_floor"]
    if is_at_chance(m):
        little = "no better than guessing" if m.get("chance") else "next to never right"
        answer = f"No: its answers are {little}, so its confidence means nothing."
    elif m["ece_p_value"] > LEVEL:
        answer = f"Yes, as far as {count(n, 'question')} can show."
    elif abs(gap) >= SMALL_GAP:
        answer = f"No: it is {abs(gap):.1f} points too {'high' if gap > 0 else 'low'} on average."
    elif m["ece"] >= SMALL_ECE:
        answer = "On average only: it is too high for some questions and too low for others."
    else:
        answer = f"Roughly: it is off by more than chance, but by little (ECE {m['ece']:.3f})."
    lines = [
        answer,
        f"{short_name(method.key)}: {percent(m['confidence'])} sure on average,"
        f" {percent(m['accuracy'])} right, on {count(n, 'test question')} of {run.tasks[0]}.",
        f"Its ECE, the mean gap between confidence and accuracy, is {m['ece']:.3f}. A calibrated"
        f" model with these confidences would show {floor['mean']:.3f} on average, and at most"
        f" {floor['p95']:.3f} in 95 % of cases.",
    ]
    sure = p.confidence >= SURE
    if sure.sum() >= FEWEST_SURE:
        lines.append(
            f"Answers that are at least {100 * SURE:.0f} % sure:"
            f" {percent(p.correct[sure].mean())} of {sure.sum():,} are right."
        )
    return tuple(lines)


def _why(chosen: dict[str, Any]) -> str:
    nll, method = chosen["validation_nll"], chosen["method"]
    asked = count(chosen["n"], "validation question")
    if chosen["chosen_on"] == "config" and not chosen["not_better_than"]:
        return f"The config names it; its NLL on {asked}: {nll[method]:.3f}."
    trained = [key for key in nll if key not in _REFERENCES]
    not_beaten = chosen["not_better_than"]
    if not_beaten:
        them = " or ".join(f"{_REFERENCES[key]} ({nll[key]:.3f})" for key in not_beaten)
        better = "It is not" if len(trained) == 1 else "It is the best of what was trained, but not"
        return (
            f"{better} better than {them}: on {asked} its NLL is {nll[method]:.3f}, and the"
            " difference may be noise. Do not rely on it."
        )
    if len(trained) == 1:
        return f"Its NLL on {asked}: {nll[method]:.3f}."
    equal = [key for key in chosen["equal_to_best"] if key != method]
    if not equal:
        same = ""
        if method.endswith(BEST_EPOCH):
            same = "; its epoch was chosen on the same questions, which flatters it a little"
        return f"It has the lowest NLL on {asked}: {nll[method]:.3f}{same}."
    others = ", ".join(f"{short_name(key)} ({nll[key]:.3f})" for key in equal)
    return (
        f"It is the simplest of those with the lowest NLL on {asked} ({nll[method]:.3f}); the"
        f" difference from {others} may be noise."
    )


def _how_good(run: RunResults, methods: dict[str, Method], method: Method) -> tuple[str, ...]:
    """Accuracy and mean confidence on test questions, as `--predict` gives them."""
    task = run.tasks[0]
    scored = methods.get(tempered(method.key), method)
    numbers = scored.metrics[task]
    sure = f"{percent(numbers['accuracy'])} right, {percent(numbers['confidence'])} sure"
    how = "without a temperature, for none was fitted"
    if is_tempered(scored.key):
        how = (
            f"at its temperature of {numbers['temperature']:.3g}, which eval.py --predict and"
            " calibration.json use"
        )
    return (f"On {count(numbers['n'], 'test question')} of {task}: {sure} ({how}).",)


def read_base(run: Path) -> dict[str, Any] | None:
    """Return what `base.json` of a run's folder holds; None for a run of an earlier release."""
    file = run / BASE_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def base_words(base: Mapping[str, Any]) -> list[str]:
    """Describe the base, as in `base.json` (see `cli.references.look_at_base`), in one or two
    sentences; the second names a problem, if there is one."""
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
    prompt = OTHER_PROMPTS.get(base["kind"])
    asks_itself = isinstance(TASKS.get(base["task"]), MadeTask)
    another = f" Try another prompt: --data.prompt {prompt}" if prompt and not asks_itself else ""
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
