"""Predictions made elsewhere: rows of probabilities, or of confidence alone, and their metrics."""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.data.example import (
    HASH,
    BadRow,
    clusters_of_predictions,
    exclude_one_another,
    repeats_note,
)
from cogcalib_jax.data.formats import TABLES, format_of, read_file
from cogcalib_jax.data.tasks.fields import as_json
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import OPTION_SCORES, EvaluationConfig
from cogcalib_jax.metrics import summarize, summarize_confidence
from cogcalib_jax.metrics.checks import PROBABILITY_SLACK, SUM_SLACK

PROBS, LOGPROBS, ANSWER = "option_probs", "option_logprobs", "answer"
IDS = "completion_ids"
CONFIDENCE, CORRECT = "confidence", "correct"
_NUMBERS = {PROBS, LOGPROBS, ANSWER, CONFIDENCE, CORRECT, IDS}
LARGEST = sys.float_info.max
KINDS = (
    f'{{"{PROBS}": [...], "{ANSWER}": INDEX}}, {{"{LOGPROBS}": [...], "{ANSWER}": INDEX}} or'
    f' {{"{CONFIDENCE}": P, "{CORRECT}": true}}'
)


@dataclass(frozen=True)
class OptionRows:
    """Probabilities over the options of `n` questions with up to `k` options."""

    probs: np.ndarray
    """[n, k] float64: 0 where there is no option"""
    options: np.ndarray
    """[n] int: options of each question"""
    answers: np.ndarray
    """[n] int: index of the right option"""
    vocab_probs: np.ndarray | None
    """[n, k] float64: probability over the whole vocabulary, where it is known"""
    clusters: np.ndarray | None = None
    """[n] which question each row asks (`data.example`); None: each its own"""

    def metrics(
        self, seed: int, config: EvaluationConfig, chosen: np.ndarray | slice = slice(None)
    ) -> dict[str, Any]:
        """Return all metrics of the rows `chosen` by their indices."""
        return summarize(
            self.probs[chosen],
            self.options[chosen],
            self.answers[chosen],
            None if self.vocab_probs is None else self.vocab_probs[chosen],
            clusters=None if self.clusters is None else self.clusters[chosen],
            **config.of_metrics(seed),
        )


@dataclass(frozen=True)
class ConfidenceRows:
    """The confidence of `n` answers, and whether they were right."""

    confidence: np.ndarray
    """[n] float64"""
    correct: np.ndarray
    """[n] bool"""
    clusters: np.ndarray | None = None
    """as of `OptionRows`"""

    def metrics(
        self, seed: int, config: EvaluationConfig, chosen: np.ndarray | slice = slice(None)
    ) -> dict[str, Any]:
        """Return all metrics of the rows `chosen` by their indices; there is no vocabulary."""
        return summarize_confidence(
            self.confidence[chosen],
            self.correct[chosen],
            clusters=None if self.clusters is None else self.clusters[chosen],
            **config.of_metrics(seed),
        )


@dataclass(frozen=True)
class ScoredFile:
    """A file of predictions."""

    scores: OptionRows | ConfidenceRows
    fields: tuple[dict[str, Any], ...]
    """what else each row says, for subgroups; that of `extra` at the same level"""
    notes: tuple[str, ...]
    scoring: dict[str, Any] = field(default_factory=dict)
    """the rule that scored options, as eval.json holds it; empty if the rows do not agree on one"""


def read_scored(path: Path) -> ScoredFile:
    """Read rows of one kind (`KINDS`), or a predictions file of this project.

    Raises UserError with file and line for a row that is none of these or of another kind than the
    first, for numbers that are no probabilities, and for a file without rows.
    """
    rows, is_table = read_file(path).rows, format_of(path) in TABLES
    if not rows:
        raise UserError(f"{path}: has no rows; give one prediction a line: {KINDS}")
    contents: list[Mapping[str, Any]] = []
    kind: tuple[str, ...] = ()
    for row in rows:
        try:
            if isinstance(row.content, BadRow):
                raise row.content
            content = _typed(row.content) if is_table else row.content
            found = _kind(content)
            if kind and found != kind:
                raise BadRow(
                    f"has {' and '.join(found)}, but {rows[0].where} has {' and '.join(kind)}; a"
                    " file holds rows of one kind"
                )
            kind = found
            _check(content, kind)
        except BadRow as reason:
            raise UserError(f"{row.where}: {reason}") from reason
        contents.append(content)
    doubt: tuple[str, ...] = ()
    if CONFIDENCE in kind:
        confidence = np.array([row[CONFIDENCE] for row in contents], float)
        scores = ConfidenceRows(confidence, np.array([bool(row[CORRECT]) for row in contents]))
    else:
        scores = _option_rows(contents, kind)
        if len(rows) > 1 and scores.answers.min() > 0:
            doubt = ("no answer is 0, so the first option is never right: answers count from 0",)
    clusters = clusters_of_predictions(contents)
    scores = replace(scores, clusters=clusters)
    notes = repeats_note(path.name, clusters) + doubt
    if kind == (LOGPROBS, ANSWER):
        notes += ("probabilities are the exponentials of option_logprobs, made to sum to 1",)
    used = {PROBS, LOGPROBS, ANSWER, CONFIDENCE, CORRECT, HASH, "extra"}
    fields = tuple(
        as_json({name: value for name, value in row.items() if name not in used} | _extra(row))
        for row in contents
    )
    return ScoredFile(scores, fields, notes, _scoring(contents))


def _typed(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of a table with the numbers that its texts are the notation of.

    A table has no types: a probability is "0.7" there, and a list of them "[0.7, 0.3]". Empty cells
    are left out.
    """
    typed = {name: value for name, value in row.items() if value is not None}
    for name in _NUMBERS & typed.keys():
        try:
            typed[name] = json.loads(typed[name].casefold())
        except (ValueError, RecursionError):
            continue  # refused, by its own text, where it is checked
    return typed


def _kind(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that say what the row predicts; what a confidence repeats is left aside."""
    options = tuple(name for name in (PROBS, LOGPROBS) if name in row)
    if options and ANSWER in row:
        return (*options, ANSWER)
    if not options and CONFIDENCE in row and CORRECT in row:
        return (CONFIDENCE, CORRECT)
    raise BadRow(f"its fields are {', '.join(row) or 'none'}; a row is {KINDS}")


def _check(row: Mapping[str, Any], kind: Sequence[str]) -> None:
    if CONFIDENCE in kind:
        _require_probability(row[CONFIDENCE], CONFIDENCE)
        if not (isinstance(row[CORRECT], bool) or row[CORRECT] in (0, 1)):
            raise BadRow(f"{CORRECT} is {row[CORRECT]!r:.40}, must be true or false")
        return
    sizes = {name: _check_list(row[name], name) for name in kind if name != ANSWER}
    if len(set(sizes.values())) > 1:
        raise BadRow(" and ".join(f"{name} has {n}" for name, n in sizes.items()) + " numbers")
    if PROBS in kind and LOGPROBS in kind and _exclusive(row):
        total = math.fsum(map(math.exp, row[LOGPROBS]))
        if total > 1 + SUM_SLACK:
            raise BadRow(
                f"{LOGPROBS} are of probabilities that sum to {total:.6g}; beside {PROBS} they must"
                " be those over the vocabulary, which sum to at most 1"
            )
    options, answer = next(iter(sizes.values())), row[ANSWER]
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < options:
        raise BadRow(f"{ANSWER} is {answer!r:.40}, must be an index from 0 to {options - 1}")


def _exclusive(row: Mapping[str, Any]) -> bool:
    """Return whether options exclude one another over the vocabulary, as far as the row says."""
    stated = row.get(IDS)
    if not isinstance(stated, list) or not all(isinstance(ids, list) for ids in stated):
        return True
    if not all(type(token) is int for ids in stated for token in ids):
        return True
    return exclude_one_another(stated)


def _check_list(values: Any, name: str) -> int:
    """Return how many numbers the list holds."""
    if not isinstance(values, list | tuple) or not values:
        raise BadRow(f"{name} is {values!r:.40}, must be a list with a number for each option")
    for i, value in enumerate(values):
        where = f"{name}[{i}]"
        if name == PROBS:
            _require_probability(value, where)
        else:
            _require_number(value, where)
            if value > PROBABILITY_SLACK:
                raise BadRow(f"{where} is {value}, must be at most 0, the logarithm of 1")
    total = math.fsum(values) if name == PROBS else 1.0
    if abs(total - 1) > SUM_SLACK:
        raise BadRow(f"{name} sum to {total:.6g}, must sum to 1 (within {SUM_SLACK})")
    return len(values)


def _require_number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise BadRow(f"{name} is {reprlib.repr(value)}, must be a finite number")


def _require_probability(value: Any, name: str) -> None:
    _require_number(value, name)
    if not -PROBABILITY_SLACK <= value <= 1 + PROBABILITY_SLACK:
        raise BadRow(f"{name} is {value}, must be a probability, from 0 to 1")


def _option_rows(rows: Sequence[Mapping[str, Any]], kind: Sequence[str]) -> OptionRows:
    options = np.array([len(row[kind[0]]) for row in rows])

    def padded(name: str, absent: float) -> np.ndarray:
        values = np.full((len(rows), options.max()), absent)
        for i, row in enumerate(rows):
            values[i, : options[i]] = row[name]
        return values

    answers = np.array([row[ANSWER] for row in rows])
    vocab = None
    if LOGPROBS in kind and all(map(_exclusive, rows)):
        vocab = np.exp(padded(LOGPROBS, -np.inf))
    if PROBS in kind:
        return OptionRows(padded(PROBS, 0.0), options, answers, vocab)
    scores = padded(LOGPROBS, -np.inf)
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return OptionRows(shifted / shifted.sum(-1, keepdims=True), options, answers, None)


def _scoring(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rule that all rows name in `scoring`, and whether their options are single tokens."""
    stated = {str(row.get("scoring")).partition(";")[0] for row in rows}
    tokens = [row.get("option_tokens") for row in rows]
    known = len(stated) == 1 and stated <= set(OPTION_SCORES)
    if not known or not all(isinstance(one, list) for one in tokens):
        return {}
    single = all(count == 1 for one in tokens for count in one)
    return {"option_score": stated.pop(), "single_token_options": single}


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    extra = row.get("extra")
    return dict(extra) if isinstance(extra, dict) else {}
