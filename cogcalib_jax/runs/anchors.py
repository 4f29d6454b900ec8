"""The anchor rows of a run: questions of a file, asked as the run asks its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.encoding import encode_split, single_token_options
from cogcalib_jax.data.example import EncodedSplit, question_key
from cogcalib_jax.data.loading import load_shots
from cogcalib_jax.data.task import load_questions
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.evaluate import data_hash
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.training.state import AnchorRows


def load_anchors(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Iterable[EncodedSplit],
    note: Callable[[str], None] = show_note,
) -> AnchorRows | None:
    """Return the questions of `config.anchor.path`; None if it names none.

    Args:
        held_out: splits on which the run is measured: their questions are left out, for a model
            that was held on them would be measured where it was trained.
        note: gets what was left out or changed.

    Raises:
        UserError: as `load_questions` and `encode_split`; no question left; options of several
            tokens where `method.space` is options.
    """
    path = config.anchor.path
    if path is None:
        return None
    questions, read = load_questions(Path(path), config.data.column_names())
    say(f"   anchor: {read}")
    measured = {question_key(e.example) for e in chain.from_iterable(held_out)}
    examples = [q.example for q in questions if question_key(q.example) not in measured]
    if len(examples) < len(questions):
        left_out = len(questions) - len(examples)
        note(
            f"anchor: {left_out:,} of {len(questions):,} questions are also in the calibration,"
            " validation or test questions and were left out"
        )
    if not examples:
        raise UserError(
            f"anchor.path is {path}; expected a question that is in no calibration, validation or"
            " test split. Give other questions"
        )
    encoded, notes = encode_split(
        "anchor", examples, tokenizer, config.data, load_shots(config.data)
    )
    for text in notes:
        note(text)
    if config.method.space == "options" and not single_token_options(encoded):
        raise UserError(
            f"method.space is options; expected options of one token each, all different, in"
            f" {path}. Use --method.space vocab, or a prompt whose options are letters"
            " (--data.prompt letters)"
        )
    return AnchorRows(config.anchor, encoded, data_hash(encoded))
