"""The questions an evaluation asks: read once, and turned into token ids for each tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, Example
from cogcalib_jax.data.loading import load_shots, load_splits, load_test
from cogcalib_jax.runs.assemble import extra_examples
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.runs.eval_config import EvalConfig

Questions = Mapping[str, tuple[Example, ...]]
"""task, or TASK:GROUP -> its test questions"""
Note = Callable[[str], None]


def test_questions(
    config: EvalConfig, runs: Sequence[RunConfig], note: Note = show_note
) -> Questions:
    """All that `config` asks for; `note` gets what was left out or changed.

    runs: those that are evaluated, for their own rows are split as they were for training.
    """
    if config.task:
        return {entry: _entry(entry, config, runs, note) for entry in config.task}
    questions = {config.data.task: _test(config.data, config, runs, note)}
    return questions | extra_examples(config.data, config.seed, config.world)


def encode_questions(
    config: EvalConfig,
    questions: Questions,
    tokenizer: PreTrainedTokenizerBase,
    note: Note = show_note,
) -> dict[str, EncodedSplit]:
    """The same as token ids; sizes are shown, and `note` gets what was left out or changed."""
    sets = {}
    for entry, rows in questions.items():
        data = config.data.for_task(entry.partition(":")[0])
        sets[entry], notes = encode_split("test", rows, tokenizer, data, load_shots(data))
        say(f"   {entry}: {len(sets[entry]):,} questions")
        _each(notes, note)
    return sets


def _entry(
    entry: str, config: EvalConfig, runs: Sequence[RunConfig], note: Note
) -> tuple[Example, ...]:
    task, _, group = entry.partition(":")
    data = config.data.for_task(task)
    if not group:
        return _test(data, config, runs, note)
    examples, notes = load_test(data, config.seed, group, world=config.world)
    _each(notes, note)
    return examples


def _test(
    data: DataConfig, config: EvalConfig, runs: Sequence[RunConfig], note: Note
) -> tuple[Example, ...]:
    """The test split: as it was made for training where these are a run's own rows, for they
    may have been its training rows otherwise; else the stored one."""
    if any((data.task, data.path) == (run.data.task, run.data.path) for run in runs):
        splits = load_splits(data, config.seed, world=config.world)
        examples, notes = splits.test, (splits.read, *splits.notes)
    else:
        examples, notes = load_test(data, config.seed, world=config.world)
    _each(notes, note)
    return examples


def _each(notes: Sequence[str], note: Note) -> None:
    for text in filter(None, notes):
        note(text)
