"""The place of a phase's lines and checkpoints: files, or memory.

A run of the programs keeps both in its folder. A fine-tuning from Python without `output_dir`
writes no file: its lines stay in memory, and there is nothing to resume.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import yaml

from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.settings import with_new_names
from cogcalib_jax.training.checkpoint import Checkpoints
from cogcalib_jax.training.config import CheckpointConfig
from cogcalib_jax.training.journal import Journal, MemoryJournal
from cogcalib_jax.world.base import ensure_base
from cogcalib_jax.world.config import PretrainConfig, WorldConfig

CONFIG_FILE = "config.yaml"


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


@dataclass(frozen=True)
class StoredRun:
    """The places of a run's base and rows, and the way its questions are asked."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def base(self) -> str | Path:
        """Return the folder or Hub id of the base; the world's is built if it is missing."""
        if self.model.path is not None:
            return self.model.path
        return ensure_base(self.world, self.pretrain, self.seed)


def read_stored_run(folder: Path) -> StoredRun:
    """Read the config of a finished run of one method.

    Raises:
        UserError: a folder that is no run, or not finished.
    """
    file = folder / CONFIG_FILE
    if not (folder / "adapter").is_dir() or not file.is_file():
        raise UserError(
            f"{folder}: holds no adapter/ and {CONFIG_FILE}; expected the folder of a method that"
            " was trained, such as runs/NAME-N/cols"
        )
    try:
        tree = with_new_names(yaml.safe_load(file.read_text(encoding="utf-8")))
        kept = {f.name: tree[f.name] for f in fields(StoredRun) if f.name in tree}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: damaged ({reason_of(error)}); train again") from error
    return from_yaml(StoredRun, yaml.safe_dump(kept), file)
