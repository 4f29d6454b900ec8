"""Where a phase keeps its lines and its checkpoints: in files, or in memory.

A run of the programs keeps both in its folder. A fine-tuning from Python without `output_dir`
writes no file: its lines stay in memory, and there is nothing to resume.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from cogcalib_jax.training.checkpoint import Checkpoints
from cogcalib_jax.training.checkpoint_config import CheckpointConfig
from cogcalib_jax.training.journal import Journal, MemoryJournal


class Storage(Protocol):
    """The places of a phase, by the paths that its files have, or would have."""

    def journal(self, path: Path) -> Journal:
        """Return the lines of that name; equal paths give the same lines."""

    def checkpoints(self, folder: Path, config: CheckpointConfig) -> Checkpoints | NoCheckpoints:
        """Return the checkpoints of a phase."""

    def scratch(self, folder: Path) -> Path:
        """Return a folder for arrays that are too large for memory."""


class Files:
    """Files at the very paths."""

    def journal(self, path: Path) -> Journal:
        return Journal(path)

    def checkpoints(self, folder: Path, config: CheckpointConfig) -> Checkpoints:
        return Checkpoints(folder, config)

    def scratch(self, folder: Path) -> Path:
        return folder


class Memory:
    """Lines in memory, no checkpoints, and a temporary folder only for what memory cannot hold."""

    def __init__(self) -> None:
        self._journals: dict[Path, MemoryJournal] = {}
        self._folders: list[tempfile.TemporaryDirectory[str]] = []

    def journal(self, path: Path) -> MemoryJournal:
        return self._journals.setdefault(path, MemoryJournal(path))

    def checkpoints(self, folder: Path, config: CheckpointConfig) -> NoCheckpoints:
        return NoCheckpoints()

    def scratch(self, folder: Path) -> Path:
        self._folders.append(tempfile.TemporaryDirectory(prefix="cogcalib_jax-"))
        return Path(self._folders[-1].name)


class NoCheckpoints:
    """The checkpoints of a phase that cannot be resumed: it has none."""

    def __enter__(self) -> NoCheckpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def restore(self, like: Any, identity: dict[str, Any], journals: Sequence[Path] = ()) -> None:
        """Return None: there is nothing to go on from."""

    def save(
        self,
        step: int,
        tree: Any,
        identity: dict[str, Any],
        journals: Mapping[Path, int],
        *,
        stopped: bool = False,
        best: bool = False,
    ) -> None:
        """Save nothing."""

    def wait(self) -> None:
        """Wait for nothing."""
