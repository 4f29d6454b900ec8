"""The rows and questions of runs and evaluations: read once, and encoded for each tokenizer."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cogcalib_jax.cli.eval_config import EvalConfig
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.console import say, show_note
from cogcalib_jax.data.config import WORDING, DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import EncodedSplit, Example, question_key, unlabelled
from cogcalib_jax.data.loading import groups_of, is_split_file, load_shots, load_splits, load_test
from cogcalib_jax.data.prompts import CLEAN
from cogcalib_jax.data.splits import require_apart
from cogcalib_jax.data.task import load_questions
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.evaluate import data_hash
from cogcalib_jax.training.state import AnchorRows
from cogcalib_jax.world.config import MadeSettings

Questions = Mapping[str, tuple[Example, ...]]
"""task, or TASK:GROUP -> its test questions"""
Note = Callable[[str], None]
TAUGHT_FIT, UNSEEN_FIT = "taught_fit", "unseen_fit"
"""groups on which something is fitted or chosen: what was taught, in other words; what was not"""


def test_questions(config: EvalConfig, runs: Sequence[RunConfig]) -> Questions:
    """Return the questions that `config` names.

    runs: the evaluated runs, whose own rows are split as for their training.
    """

    def read(entry: str) -> tuple[Example, ...]:
        task, _, group = entry.partition(":")
        data = config.data.for_task(task)
        own = any((data.task, data.path) == (run.data.task, run.data.path) for run in runs)
        if own and not group:
            # The stored test split may hold rows that such a run was trained on.
            splits = load_splits(data, config.seed, made=config.made)
            examples, notes = splits.test, (splits.read, *splits.notes)
        else:
            examples, notes = load_test(data, config.seed, group or None, made=config.made)
        for text in filter(None, notes):
            show_note(text)
        return examples

    questions = {entry: read(entry) for entry in config.task or (config.data.task,)}
    if config.task:
        return questions
    return questions | extra_examples(config.data, config.seed, config.made)


def note_trained_questions(
    config: EvalConfig, runs: Sequence[RunConfig], questions: Questions
) -> None:
    """Say which of `questions` the runs were trained on, as far as their rows can still be read."""
    for data, made, seed in dict.fromkeys((run.data, run.made, run.seed) for run in runs):
        # Splits of one config share no question, and groups of a made task are what they say.
        others = []
        for entry in questions:
            task, _, group = entry.partition(":")
            stored = not isinstance(TASKS[task], MadeTask)
            if config.data.for_task(task) != data or (group and stored):
                others.append(entry)
        if not others:
            continue
        try:
            splits = load_splits(data, seed, made=made)
        except UserError as error:
            show_note(f"not compared with the training rows of {data.task}: {error}")
            continue
        trained = {question_key(row) for row in (*splits.style, *splits.train)}
        for entry in others:
            known = [row for row in questions[entry] if question_key(row) in trained]
            if known:
                example = textwrap.shorten(known[0].question, 70, placeholder=" ...")
                show_note(
                    f"{len(known):,} of {len(questions[entry]):,} questions of {entry} are training"
                    f" rows of {data.task}, such as {example!r}: numbers on them flatter a model"
                    " that was trained on them"
                )


def encode_questions(
    config: EvalConfig, questions: Questions, tokenizer: PreTrainedTokenizerBase
) -> dict[str, EncodedSplit]:
    """Return task -> questions as token ids."""
    sets = {}
    for entry, rows in questions.items():
        data = config.data.for_task(entry.partition(":")[0])
        sets[entry], notes = encode_split("test", rows, tokenizer, data, load_shots(data))
        say(f"   {entry}: {len(sets[entry]):,} questions")
        for text in notes:
            show_note(text)
    return sets


def tfb_anchors(
    config: EvalConfig,
    run: RunConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    measured: Iterable[EncodedSplit],
) -> EncodedSplit:
    """Return the anchors of `config.tfb` for the model of `run`, or for one without.

    measured: the questions that are evaluated, which are left out.

    Raises:
        UserError: no question is left; rows that cannot be used.
    """
    if config.tfb_anchors is not None:
        data = config.data
        questions, _ = load_questions(Path(config.tfb_anchors), data.column_names())
        examples, shots = [q.example for q in questions], load_shots(data)
    else:
        assert run is not None  # EvalConfig holds that there is a run or a file
        data = config.data if config.data.task == run.data.task else run.data
        splits = load_splits(data, run.seed, made=run.made)
        examples, shots = splits.train, splits.shots
    held_out = {question_key(e.example) for e in chain.from_iterable(measured)}
    kept = [example for example in examples if question_key(example) not in held_out]
    if not kept:
        raise UserError(
            f"tfb_anchors is {config.tfb_anchors}; expected a question that is not evaluated"
        )
    encoded, notes = encode_split("anchor", kept, tokenizer, data, shots)
    for text in notes:
        show_note(text)
    return encoded


def load_anchors(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    carved: EncodedSplit | None,
    others: Mapping[str, EncodedSplit],
    note: Note = show_note,
) -> AnchorRows | None:
    """Return the questions without answers of a run; None if it has none.

    Args:
        carved: those of a split of their own; None: `config.anchor.path` names a file.
        others: the splits and questions of the run, with which they share nothing.
        note: gets what was left out or changed.

    Raises:
        UserError: as `load_questions` and `encode_split`; a file of a split; a question, group or
            person of `others`.
    """
    path, where = config.anchor.path, "anchor"
    if path is not None:
        where = f"anchor.path is {path}"
        if is_split_file(config.data, Path(path)):
            raise UserError(
                f"{where}, a file of the run's own splits; expected other questions. Give a file of"
                " their own, or carve them from train (--anchor.carve N)"
            )
        questions, read = load_questions(Path(path), config.data.column_names())
        say(f"   anchor: {read}")
        examples = [unlabelled(question.example) for question in questions]
        shots = load_shots(config.data)
        carved, notes = encode_split("anchor", examples, tokenizer, config.data, shots)
        for text in notes:
            note(text)
    if carved is None:
        return None
    if config.anchor.tempered and others["calibration"].is_open:
        raise UserError(
            f"anchor.tempered is true: questions of {config.data.task} are open, and have no"
            " options whose scores a temperature would divide; leave it out"
        )
    made = isinstance(TASKS[config.data.task], MadeTask)
    require_apart(
        [e.example for e in carved],
        {name: [e.example for e in rows] for name, rows in others.items()},
        where,
        groups_are_names=made,
    )
    return AnchorRows(config.anchor, carved, data_hash(carved))


def encode_splits(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    note: Note = show_note,
    made: MadeSettings | None = None,
    carve: int = 0,
) -> dict[str, EncodedSplit]:
    """Return name -> split of the task as token ids; `note` gets what was left out or changed.

    carve: rows that become questions without answers, the split "anchor".
    """
    splits = load_splits(config, seed, made=made, carve=carve)
    if splits.read:
        say(f"   {splits.read}")
    encoded, notes = {}, list(splits.notes)
    anchors = {"anchor": splits.anchor} if splits.anchor else {}
    for name, examples in (*splits.items(), *anchors.items()):
        encoded[name], more = encode_split(name, examples, tokenizer, config, splits.shots)
        notes.extend(more)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in encoded.items())
    say(f"   {config.task}: {sizes} questions")
    for text in dict.fromkeys(notes):
        note(text)
    return encoded


def evaluation_sets(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    test: EncodedSplit,
    note: Note = show_note,
) -> dict[str, EncodedSplit]:
    """Return TASK or TASK:GROUP -> the final questions of a run: its test split, other groups of
    a made task, and the tasks of `config.also`.
    """
    sets = {config.data.task: test}
    for name, examples in extra_examples(config.data, config.seed, config.made).items():
        sets[name], _ = encode_split(name, examples, tokenizer, config.data)
    for entry in config.also:
        task, _, group = entry.partition(":")
        data = config.data.for_task(task)
        examples, notes = load_test(data, config.seed, group or None, made=config.made)
        sets[entry], more = encode_split(entry, examples, tokenizer, data, load_shots(data))
        say(f"   {entry}: {len(sets[entry]):,} questions")
        for text in dict.fromkeys([*notes, *more]):
            note(text)
    return sets


def in_other_form(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, EncodedSplit],
    note: Note = show_note,
) -> dict[str, EncodedSplit]:
    """Return split -> its questions in the form of `known_by`; {} if that is unset.

    Raises:
        UserError: as `encode_split`; open questions.
    """
    if config.known_by is None:
        return {}
    data, task, found = config.data, TASKS[config.data.task], {}
    if config.known_by != WORDING:
        data = replace(data, prompt=config.known_by, protocol=CLEAN)
    shots = load_shots(data)
    for name, rows in splits.items():
        if rows.is_open:
            raise UserError(
                f"known_by is {config.known_by}; expected none for {data.task}, whose questions are"
                " open. Leave it out"
            )
        examples = [row.example for row in rows]
        if config.known_by == WORDING:
            assert isinstance(task, MadeTask)  # RunConfig holds that
            others = [[w for w in task.wordings(e) if w.question != e.question] for e in examples]
            # The last: of invented facts, one in which nobody else is asked the same question.
            examples = [wordings[-1] for wordings in others]
        found[name], notes = encode_split(name, examples, tokenizer, data, shots)
        for text in notes:
            note(f"known_by = {config.known_by}: {text}")
    return found


def fitting_sets(
    config: RunConfig | EvalConfig, tokenizer: PreTrainedTokenizerBase, calibration: EncodedSplit
) -> dict[str, EncodedSplit]:
    """Return name -> questions on which something is fitted or chosen, each with equal weight.

    These are the calibration split, which was not taught, and taught facts in a wording that is
    neither trained on nor reported. Tasks without such a wording have the calibration split alone:
    what is fitted there is blind to what was taught.
    """
    sets = {"calibration": calibration}
    if TAUGHT_FIT in groups_of(config.data.task):
        examples, _ = load_test(config.data, config.seed, TAUGHT_FIT, made=config.made)
        sets[TAUGHT_FIT], _ = encode_split(TAUGHT_FIT, examples, tokenizer, config.data)
    return sets


def extra_examples(
    config: DataConfig, seed: int, made: MadeSettings
) -> dict[str, tuple[Example, ...]]:
    """Return `TASK:GROUP` -> questions of a task beside its test split.

    Only made tasks have them: groups of stored rows are parts of the test split.
    """
    task = TASKS[config.task]
    groups = task.always if isinstance(task, MadeTask) else ()
    return {
        f"{config.task}:{group}": load_test(config, seed, group, made=made)[0] for group in groups
    }
