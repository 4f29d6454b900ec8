"""Stored rows become examples: read them, refuse those that cannot be used, split the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogcalib_jax.data import sources
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.example import (
    BadRow,
    Example,
    NoLabel,
    Splits,
    contradictions_note,
    question_clusters,
    repeats_note,
)
from cogcalib_jax.data.formats import Row
from cogcalib_jax.data.prompts import published
from cogcalib_jax.data.sources import Stored, split_files, stored_rows, unread_files
from cogcalib_jax.data.splits import Official, draw_shots, limit_test, make_splits
from cogcalib_jax.data.tasks import TASKS, MadeTask, RowTask
from cogcalib_jax.data.tasks.custom import Reader, settle
from cogcalib_jax.data.tasks.fields import check, near_misses, right_choice_repeats
from cogcalib_jax.errors import UserError, first_of

# Names that a line about files and columns shows.
_MOST = 12


def load_splits(
    config: DataConfig,
    seed: int,
    stored: Mapping[str, Stored] | None = None,
    *,
    made: Any = None,
    carve: int = 0,
) -> Splits:
    """Return the five splits of a task.

    Args:
        config: the task, the place of its rows, and sizes.
        seed: the run's seed; decides rows that are made (stored ones: `config.split_seed`).
        stored: split -> rows in memory, for a task of the user's own rows; None: read `config`.
        made: settings of the tasks that make their own rows (`MadeSettings`); None: the defaults.
        carve: training rows that become the split `anchor` (of stored rows).

    Raises:
        UserError: rows that cannot be read or used, splits that are missing, unlabelled or small.
    """
    task = TASKS[config.task]
    if isinstance(task, MadeTask):
        return task.build(made, seed)
    official, notes, read = _official(task, config, stored)
    splits = make_splits(official, config, carve)
    return replace(splits, notes=(*notes, *splits.notes), read=read)


def load_shots(config: DataConfig) -> tuple[Example, ...]:
    """Return the solved questions that `load_splits` draws, for evaluation alone (UserError: as
    there, or no training split to draw them from)."""
    if config.few_shot == 0:
        return ()
    task = TASKS[config.task]
    assert isinstance(task, RowTask)  # DataConfig refuses solved questions for others
    if config.path is not None and Path(config.path).is_dir():
        train = task.splits["train"] if task.hub else "train"
        if not _files(task, config, train):
            raise UserError(
                f"{config.path}: has no {train} split, from which the {config.few_shot} solved"
                f" questions of data.few_shot are drawn; add {train}.jsonl, or set it to 0"
            )
    return draw_shots(_official(task, config)[0], config)


def load_test(
    config: DataConfig, seed: int, group: str | None = None, *, made: Any = None
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Return the test split alone, or one group of questions, and notes.

    Args:
        config: as for `load_splits`; a `path` that is one file is the test set as a whole. Other
            splits may be missing. `test_rows` also limits a group.
        group: one of `groups_of(config.task)`: a part of the test split, or questions beside it.

    Raises:
        UserError: as `load_splits`; no such group, or no row in it.
    """
    task = TASKS[config.task]
    if group is not None:
        _require_group(config.task, group)
    if isinstance(task, MadeTask):
        if group is None:
            splits = task.build(made, seed)
            return splits.test, splits.notes
        examples = task.group(group, made, seed)
        if not examples:
            raise UserError(
                f"task {config.task}:{group}: no question is left out of fine-tuning; set"
                f" {task.section}.{group}"
            )
        return examples, ()
    notes: list[str] = []
    names = {"test": "test"} if _is_file(config) else _split_names(task, config)
    if "test" not in names:
        raise UserError(
            f"{config.path}: no test.jsonl or validation.jsonl (or .parquet) to evaluate on; "
            "add one, or pass the file itself with --data.path FILE"
        )
    wanted = {"test": names["test"]}
    if task.read is None and not _is_file(config):
        # Answers have one form over all files of the task, as for training.
        wanted |= {name: split for name, split in names.items() if _files(task, config, split)}
    stored = _stored(task, config, wanted)
    reader = _reader(task, config, stored)
    test = _usable(task, "test", stored["test"], reader, config, notes)
    notes.insert(0, _read_line(config, stored, test, reader))
    if group is not None:
        test = [example for example in test if task.groups[group](example)]
        if not test:
            raise UserError(f"task {config.task}:{group}: none of the test rows belongs to it")
    test = limit_test(test, config)
    notes += repeats_note("test", question_clusters(test))
    return test, tuple(filter(None, notes))


def is_split_file(config: DataConfig, file: Path) -> bool:
    """Return whether a split of the task is read from `file`."""
    task = TASKS[config.task]
    if isinstance(task, MadeTask) or config.path is None or not file.is_file():
        return False
    if _is_file(config):
        return Path(config.path).samefile(file)
    names = ("train", "validation", "test", *_split_names(task, config).values())
    return any(one.samefile(file) for name in names for one in _files(task, config, name))


def groups_of(task: str) -> tuple[str, ...]:
    """Return the names that TASK:GROUP accepts for `task`; () if it has no groups."""
    return tuple(TASKS[task].groups)


def read_line(
    stored: Mapping[str, Stored],
    examples: Sequence[Example],
    reader: Reader | None,
    unread: Sequence[str],
) -> str:
    """Return which files were read as which split, how, and which were not read.

    stored: our split -> its rows; the name "" is not shown.
    """
    files = ", ".join(_shown(name, split) for name, split in stored.items())
    plural = "s" if len(examples) != 1 else ""
    kind = f"open question{plural}"
    if not examples[0].is_open:
        sizes = sorted({len(example.choices) for example in examples})
        options = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        kind = f"question{plural} with {options} options"
    parts = [f"read {files}: {len(examples):,} {kind}"]
    parts += dict.fromkeys(note for split in stored.values() for note in split.notes)
    if reader is not None:
        parts += reader.notes
        if reader.unread:
            parts.append(f"columns not used: {first_of(reader.unread, _MOST)}")
    if unread:
        parts.append(f"files not read: {first_of(unread, _MOST)}")
    return "; ".join(parts)


def _official(
    task: RowTask, config: DataConfig, given: Mapping[str, Stored] | None = None
) -> tuple[Official, list[str], str]:
    """Return the rows as published, with their groups; notes; and a line about the files."""
    notes: list[str] = []
    stored = given or _stored(task, config, _split_names(task, config))
    reader = _reader(task, config, stored)
    official = {
        name: _usable(task, name, rows, reader, config, notes) for name, rows in stored.items()
    }
    open_splits = [name for name, rows in official.items() if rows[0].is_open]
    if open_splits and len(open_splits) < len(official):
        closed = [name for name in official if name not in open_splits]
        raise UserError(
            f"task {config.task}: {', '.join(open_splits)} rows are open questions, "
            f"{', '.join(closed)} rows have choices; all splits of a task must be of one kind"
        )
    rows = [row for part in official.values() for row in part]
    read = read_line(given, rows, reader, ()) if given else _read_line(config, stored, rows, reader)
    if task.group is not None:
        # Groups are found over all splits together.
        grouped = iter(task.group(rows))
        official = {name: [next(grouped) for _ in part] for name, part in official.items()}
    parts = Official(official["train"], official.get("validation"), official.get("test"))
    return parts, notes, read


def _require_group(task: str, group: str) -> None:
    groups = groups_of(task)
    if group in groups:
        return
    if not groups:
        raise UserError(f"task {task}:{group}: {task} has no groups; evaluate {task} alone")
    near = near_misses(group, groups)
    if near and len(near) < len(groups):
        hint = f"did you mean {', '.join(near)}? docs/tasks.md lists all {len(groups)}"
    else:
        hint = f"allowed: {', '.join(groups)}"
    raise UserError(f"task {task}:{group}: no such group of questions; {hint}")


def _is_file(config: DataConfig) -> bool:
    return config.path is not None and Path(config.path).is_file()


def _split_names(task: RowTask, config: DataConfig) -> dict[str, str]:
    """Return our split -> the stored split it is read from; missing ones are carved from train."""
    if task.hub is not None:
        if _is_file(config):
            raise UserError(
                f"{config.path}: task {config.task} needs the folder of its official splits "
                "(one file is enough only for evaluation and for --data.task custom)"
            )
        found = published(config.protocol, config.task)
        return dict(found.splits if found and found.splits else task.splits)
    names = {"train": "train"}
    if not _is_file(config):
        names |= {name: name for name in ("validation", "test") if _files(task, config, name)}
    if "test" not in names and "validation" in names:
        # As for the tasks whose test split is unlabelled.
        names["test"] = names.pop("validation")
    return names


def _stored(task: RowTask, config: DataConfig, names: Mapping[str, str]) -> dict[str, Stored]:
    """Return our split -> the rows of the stored split that it is read from (UserError: a split
    that is not there, cannot be read, or has no rows)."""
    stored = {}
    for name, split in names.items():
        if config.path is None:
            assert task.hub is not None  # DataConfig holds that a task without a Hub has a path
            stored[name] = sources.read_hub(task.hub, split)
        elif _is_file(config):
            stored[name] = stored_rows([Path(config.path)], config.path)
        else:
            stored[name] = sources.read_files(Path(config.path), split, _files(task, config, split))
        if not stored[name].rows:
            raise UserError(f"{stored[name].source}: has no rows; give a file with rows")
    return stored


def _reader(task: RowTask, config: DataConfig, stored: Mapping[str, Stored]) -> Reader | None:
    """Return the reader of the user's own rows; None for a task with a schema of its own."""
    if task.read is not None:
        return None
    rows = [row for split in stored.values() for row in split.rows]
    return settle(rows, config.column_names(), config.answers, config.answers_from)


def _files(task: RowTask, config: DataConfig, split: str) -> list[Path]:
    """Return the files of a stored split in the folder of `config`; [] if there are none."""
    folder = Path(config.path or "")
    name = task.hub.config if task.hub else None
    # Published tasks have names of their own: `dev` of MMLU is not its validation split.
    return split_files(folder, split, name, usual_names=task.hub is None)


def _usable(
    task: RowTask,
    name: str,
    stored: Stored,
    reader: Reader | None,
    config: DataConfig,
    notes: list[str],
) -> list[Example]:
    """Return the usable rows of one stored split."""
    rows, source = stored.rows, stored.source
    examples, refused = _examples(task, reader, rows)
    examples = _as_published(examples, config, source, notes)
    notes += contradictions_note(f"{config.task} {name}", examples)
    if twice := sum(not e.is_open and right_choice_repeats(e) for e in examples):
        notes.append(
            f"{config.task} {name}: {twice} of {len(examples)} rows hold the right choice twice;"
            " they are used, and only the choice that the key names is right, as in published"
            " numbers"
        )
    if all(isinstance(reason, NoLabel) for _, reason in refused) and not examples:
        named = "" if reader is None else " or name its column with --data.columns answer=COLUMN,"
        raise UserError(
            f"{source}: none of its {len(rows)} rows has an answer; the first {refused[0][1]}; give"
            f" a file with answers,{named} or leave an unlabelled split out if the task allows it"
        )
    if not refused:
        return examples
    where, reason = refused[0]
    if config.on_bad_row == "error" or not examples:
        more = f" (and {len(refused) - 1} more such rows)" if len(refused) > 1 else ""
        raise UserError(
            f"{where}: {reason}{more}; fix it"
            + ("" if not examples else " or leave such rows out with --data.on-bad-row skip")
        )
    notes.append(
        f"{source}: {len(refused)} of {len(rows)} rows cannot be used and were left out; "
        f"the first: {where}: {reason}"
    )
    return examples


def _as_published(
    examples: list[Example], config: DataConfig, source: str, notes: list[str]
) -> list[Example]:
    """Return the rows that the protocol uses."""
    found = published(config.protocol, config.task)
    if found is None or found.choices is None:
        return examples
    used = [example for example in examples if len(example.choices) == found.choices]
    if len(used) < len(examples):
        notes.append(
            f"{source}: {len(examples) - len(used)} of {len(examples)} rows do not have"
            f" {found.choices} choices and were left out, as protocol {config.protocol} does"
        )
    return used


def _examples(
    task: RowTask, reader: Reader | None, rows: Sequence[Row]
) -> tuple[list[Example], list[tuple[str, BadRow]]]:
    """Return the usable rows, and the places of the others with the reasons (UserError: a row with
    choices among open questions, or an open one among rows with choices)."""
    examples: list[Example] = []
    refused: list[tuple[str, BadRow]] = []
    seen: dict[str, str] = {}
    for row in rows:
        try:
            if isinstance(row.content, BadRow):
                raise row.content
            read = reader or task.read
            assert read is not None  # a task without has a reader
            example = check(read(row.content, row.number), task.hub is not None)
            if example.id in seen:
                raise BadRow(f"its id {example.id!r} is already used at {seen[example.id]}")
        except BadRow as reason:
            refused.append((row.where, reason))
        else:
            if examples and example.is_open != examples[0].is_open:
                # Never skipped: only the user knows which of the two kinds was meant.
                kinds = ("has choices", "has no choices")
                raise UserError(
                    f"{row.where}: {kinds[example.is_open]}, but {seen[examples[0].id]} "
                    f"{kinds[examples[0].is_open]}; give each row of a file choices, or none"
                )
            seen[example.id] = row.where
            examples.append(example)
    return examples, refused


def _read_line(
    config: DataConfig, stored: Mapping[str, Stored], rows: Sequence[Example], reader: Reader | None
) -> str:
    """Return a line about the files that were read; empty for rows of the Hub."""
    if config.path is None:
        return ""
    if _is_file(config):
        return read_line({"": next(iter(stored.values()))}, rows, reader, ())
    # An evaluation of a published task reads one of its splits alone.
    read = [file for split in stored.values() for file in split.files]
    unread = unread_files(Path(config.path), read) if "train" in stored or reader else []
    return read_line(stored, rows, reader, unread)


def _shown(name: str, stored: Stored) -> str:
    if not stored.files:
        return stored.source
    first, last = stored.files[0].name, stored.files[-1].name
    shown = first if first == last else f"{first} to {last}"
    # The split is named only if the file's name does not begin with it.
    return f"{shown} as {name}" if name and not first.casefold().startswith(name) else shown
