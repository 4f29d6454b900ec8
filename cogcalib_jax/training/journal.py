"""Append-only lines about a run, readable at any moment and cut back on resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from cogcalib_jax.distributed import main_only
from cogcalib_jax.files import whole_path, with_path_in_errors


class Journal:
    """One file of JSON objects, each with a `step`, one a line."""

    def __init__(self, path: Path):
        self.path = path

    @main_only
    def write(self, **record: Any) -> None:
        finite = {key: _finite(value) for key, value in record.items()}
        line = (json.dumps(finite, allow_nan=False) + "\n").encode()
        with with_path_in_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                whole = file.tell()
                try:
                    while line:  # a disk that fills up takes a part first
                        line = line[file.write(line) :]
                except OSError:
                    file.truncate(whole)
                    raise

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; none where it was never written."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def size(self) -> int:
        """Return its bytes; 0 if it was never written."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @main_only
    def cut_to(self, size: int) -> None:
        """Drop what comes after the first `size` bytes: a resumed run writes it again."""
        if self.size() > size:
            with with_path_in_errors(self.path):
                os.truncate(self.path, size)

    @main_only
    def begin(self, earlier: Journal | None = None) -> None:
        """Start anew, with the lines of an earlier phase or none."""
        content = earlier.path.read_bytes() if earlier is not None and earlier.size() else b""
        with whole_path(self.path) as partial:
            partial.write_bytes(content)


class MemoryJournal(Journal):
    """The same lines in memory; `path` is their name and no file."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.records: list[dict[str, Any]] = []

    def write(self, **record: Any) -> None:
        self.records.append({key: _finite(value) for key, value in record.items()})

    def read(self) -> list[dict[str, Any]]:
        """Return all lines."""
        return list(self.records)

    def size(self) -> int:
        """The number of lines."""
        return len(self.records)

    def cut_to(self, size: int) -> None:
        """Drop what comes after the first `size` lines."""
        del self.records[size:]

    def begin(self, earlier: Journal | None = None) -> None:
        """Start anew, with the lines of an earlier phase in memory or none."""
        self.records = list(earlier.records) if isinstance(earlier, MemoryJournal) else []


def _finite(value: Any) -> Any:
    """Infinite thresholds (a split with one class) are null in JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
