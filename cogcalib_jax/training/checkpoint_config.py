"""When training state is saved, and which config may go on from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogcalib_jax.errors import UserError, check
from cogcalib_jax.settings import with_new_names


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved and how much of it is kept."""

    every: int | None = None
    """steps between checkpoints; unset means at the end of each epoch"""
    keep: int = 2
    """checkpoints kept, newest first"""
    keep_best: bool = False
    """also keep the one of the lowest validation NLL, where a validation falls on a checkpoint"""

    def __post_init__(self) -> None:
        check(self.every is None or self.every >= 1, "every", "must be an integer of at least 1")
        check(self.keep >= 1, "keep", "must be an integer of at least 1")


def require_same_identity(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to resume what was started with other settings, naming the first that differs."""
    # Through JSON, as stored ones went: tuples become lists.
    stored, wanted = json.loads(json.dumps([stored, wanted]))
    stored = with_new_names(stored)

    def differences(a: Any, b: Any, path: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [
                line
                for key in sorted(a.keys() | b.keys())
                for line in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
            ]
        return [] if a == b else [f"{path} is {b!r} but it was started with {a!r}"]

    different = differences(stored, wanted, "")
    if different:
        raise UserError(
            f"{folder}: cannot resume: {different[0]}; use the original value or another --run-dir"
        )
