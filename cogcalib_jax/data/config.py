"""The settings of a task: its rows, its splits and its prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cogcalib_jax.data.prompts import CLEAN, PROMPTS, PROTOCOLS
from cogcalib_jax.data.tasks import TASKS, MadeTask
from cogcalib_jax.data.tasks.columns import parse_columns
from cogcalib_jax.data.tasks.fields import Way
from cogcalib_jax.errors import FieldError, check, check_named
from cogcalib_jax.settings import often, setting

MAX_CALIBRATION_ROWS = 500
CHAT = "chat"
WORDING = "wording"
"""a form of a question: its own prompt with another text, which tasks that make their rows have"""
OWN_ROWS = ("columns", "answers", "answers_from")
"""fields about the user's own rows"""
LIMITS = ("calibration_rows", "validation_rows", "train_rows", "test_rows")
"""fields that cut splits of stored rows; a task that makes its rows has sizes of its own"""


@dataclass(frozen=True)
class DataConfig:
    """The task, its rows, its splits and its prompts."""

    task: str = often("world")
    """Name of a task (docs/tasks.md)."""
    path: str | None = often(None, place=True)
    """File or folder of your rows (CSV, JSON, Parquet; docs/tasks.md) or of a published task in the
    Hub's schema; none reads the Hub."""
    columns: tuple[str, ...] | None = often(None)
    """Columns of your rows, as question=stem,choices=A+B+C+D,answer=key; unset: the usual names."""
    answers: Way | None = None
    """Form of the answers in your own rows; unset: the one form that fits every row."""
    answers_from: Literal[0, 1] | None = None
    """The index of the first choice in your own rows; unset: found from the rows."""
    on_bad_row: Literal["error", "skip"] = "error"
    """If a row is unusable: error stops and names it, skip leaves it out and counts it."""
    prompt: str = often("auto")
    """Prompt: letters, cloze or qa; auto: that of the task; chat: the tokenizer's chat template."""
    few_shot: int = 0
    """Number of solved training questions before every question; they are not trained on."""
    protocol: str = CLEAN
    """clean, or a published set-up with its prompt and splits (docs/protocols.md)."""
    max_length: int = 300
    """Most tokens of a prompt with its longest option; longer passages lose their middle."""
    calibration_rows: int | None = None
    """Rows carved from train for threshold and temperature; none: 15 %, at most 500."""
    validation_rows: int | None = None
    """Rows for validation; none: the official split whole, or 15 % of train, at most 500."""
    style_fraction: float = setting(0.1, affects_questions=False)
    """Share of the remaining training rows that is kept for style adaptation."""
    train_rows: int | None = setting(None, affects_questions=False)
    """Most rows for style adaptation and fine-tuning together; none uses all."""
    test_rows: int | None = None
    """Most test rows; none uses all."""
    shared_groups: Literal["keep", "drop"] = setting("keep", added=True)
    """Keep or drop your training rows whose group is also in your validation or test file."""
    split_seed: int = 0
    """Decides which rows go where; tasks that make their rows have a seed of their own."""

    def __post_init__(self) -> None:
        check_named(self)
        check(self.task in TASKS, "task", f"must be a task (allowed: {', '.join(TASKS)})")
        prompts = ("auto", CHAT, *PROMPTS)
        check(self.prompt in prompts, "prompt", f"must be a prompt (allowed: {', '.join(prompts)})")
        task = TASKS[self.task]
        if isinstance(task, MadeTask):
            makes = f"task {self.task} makes its own rows; for your rows add --data.task custom"
            check(self.path is None, "path", f"must be none: {makes}")
            for name in LIMITS:
                own = f"{task.section}.{name.removesuffix('_rows')}"
                check(
                    getattr(self, name) is None, name, f"must be none: task {self.task} has {own}"
                )
        elif task.hub is None:
            check(self.path is not None, "path", f"must name a file or folder for task {self.task}")
        self._check_own_rows()
        self._check_protocol()
        check(self.few_shot >= 0, "few_shot", "must be at least 0")
        check(
            self.few_shot == 0 or not isinstance(task, MadeTask),
            "few_shot",
            f"must be 0: task {self.task} has no solved questions to show",
        )
        check(self.max_length >= 8, "max_length", "must be at least 8 tokens")
        check(
            self.calibration_rows is None or 2 <= self.calibration_rows <= MAX_CALIBRATION_ROWS,
            "calibration_rows",
            f"must be from 2 to {MAX_CALIBRATION_ROWS}, or none",
        )
        check(
            self.train_rows is None or self.train_rows >= 2,
            "train_rows",
            "must be at least 2 (one for style adaptation, one for fine-tuning), or none",
        )
        for name in ("validation_rows", "test_rows"):
            rows = getattr(self, name)
            check(rows is None or rows >= 1, name, "must be at least 1, or none")
        check(0 < self.style_fraction < 1, "style_fraction", "must be between 0 and 1")
        check(self.split_seed >= 0, "split_seed", "must be at least 0")

    def for_task(self, task: str) -> DataConfig:
        """Return the same settings for `task`, without the path and columns of `self.task`
        (FieldError: a setting that `task` does not allow)."""
        if task == self.task:
            return self
        made = isinstance(TASKS.get(task), MadeTask)
        unset = (*OWN_ROWS, *(LIMITS if made else ()))
        return replace(self, task=task, path=None, **dict.fromkeys(unset))

    @property
    def other_forms(self) -> tuple[str, ...]:
        """The prompts that are not the run's own, and WORDING for a task that makes its rows."""
        task = TASKS[self.task]
        own = task.prompt if self.prompt == "auto" else self.prompt
        prompts = tuple(name for name in (*PROMPTS, CHAT) if name != own)
        return (*prompts, WORDING) if isinstance(task, MadeTask) else prompts

    def column_names(self) -> dict[str, str]:
        """Return field -> columns, from `columns`."""
        return parse_columns(self.columns or ())

    def _check_own_rows(self) -> None:
        task = TASKS[self.task]
        if isinstance(task, MadeTask) or task.read is not None:
            for name in OWN_ROWS:
                check(
                    getattr(self, name) is None,
                    name,
                    f"must be unset: task {self.task} has its own columns and answers",
                )
        try:
            self.column_names()
        except ValueError as error:
            raise FieldError("columns", f"must be {error}") from error
        check(
            self.answers_from is None or self.answers in (None, "index"),
            "answers_from",
            "must be unset beside answers, unless answers is index",
        )

    def _check_protocol(self) -> None:
        protocols = (CLEAN, *PROTOCOLS)
        known = self.protocol in protocols
        check(known, "protocol", f"must be a protocol (allowed: {', '.join(protocols)})")
        if self.protocol == CLEAN:
            return
        covered = PROTOCOLS[self.protocol]
        check(
            self.task in covered,
            "protocol",
            f"must be {CLEAN} for task {self.task}: {self.protocol} covers {', '.join(covered)}",
        )
        fixes = f"protocol {self.protocol} fixes the prompt"
        check(self.prompt == "auto", "prompt", f"must be auto: {fixes}")
        check(self.few_shot == 0, "few_shot", f"must be 0: {fixes}")
