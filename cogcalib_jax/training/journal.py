"""Append-only JSON lines about a run, readable at any moment and cut back on resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError


class Journal:
    """One file of JSON objects, each with a `step`, one a line."""

    def __init__(self, path: Path):
        self.path = path

    @main_only
    def write(self, **record: Any) -> None:
        line = json.dumps({key: _finite(value) for key, value in record.items()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a last line torn by a crash is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [self._record(number, line) for number, line in enumerate(lines, start=1)]

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if isinstance(record["step"], int):
                return record
        except (ValueError, RecursionError, LookupError, TypeError):
            pass
        raise UserError(
            f"{self.path}:{number}: no record of a step, so the file is damaged; take the line out,"
            " or start the run again in another folder"
        )

    @main_only
    def cut_to(self, step: int) -> None:
        """Drop what was written after `step`: a resumed run writes it again."""
        self.replace([record for record in self.read() if record["step"] <= step])

    @main_only
    def replace(self, records: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        partial.replace(self.path)


def _finite(value: Any) -> Any:
    """Infinite thresholds (a split with one class) are null in JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
