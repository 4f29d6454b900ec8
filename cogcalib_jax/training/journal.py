"""Append-only JSON lines about a run, readable at any moment and cut back on resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cogcalib_jax.distributed import main_only
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import named, write_whole

# Lines that say what an update did; others are of what follows it: refits, validations, dynamics.
OF_UPDATES = ("style", "finetune", "nonfinite")


class Journal:
    """One file of JSON objects, each with a `step`, one a line."""

    def __init__(self, path: Path):
        self.path = path

    @main_only
    def write(self, **record: Any) -> None:
        text = json.dumps({key: _finite(value) for key, value in record.items()}) + "\n"
        line = text.encode()
        with named(self.path):
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
    def cut_to(self, step: int, stopped: bool = False) -> None:
        """Drop what was written after `step`: a resumed run writes it again.

        stopped: what followed that update was not done, or not to its end; its lines go, too.
        """

        def stays(record: dict[str, Any]) -> bool:
            at = record["step"]
            return at < step or (at == step and (not stopped or record.get("phase") in OF_UPDATES))

        self.replace([record for record in self.read() if stays(record)])

    @main_only
    def replace(self, records: list[dict[str, Any]]) -> None:
        write_whole(self.path, "".join(json.dumps(r) + "\n" for r in records))


def _finite(value: Any) -> Any:
    """Infinite thresholds (a split with one class) are null in JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
