"""Write the tables of messages.md from the messages of the programs now.

python -m tests.reliability.make_document

A message that agrees with its row is left alone, so that its … stay.
"""

import tests.conftest  # noqa: F401, I001 - before jax: what every test relies on

import tempfile
from pathlib import Path

from tests.reliability.good import write_good
from tests.reliability.outcome import run_case
from tests.reliability.table import (
    CASES,
    ELLIPSIS,
    agrees,
    documented,
    replace_tables,
    table_row,
)

LONGEST = 300


def shown(message: str) -> str:
    """A message as the document shows it: of a very long one, both ends."""
    if len(message) <= LONGEST:
        return message
    half = LONGEST // 2
    return f"{message[:half].rstrip()}{ELLIPSIS}{message[-half:].lstrip()}"


def tables() -> str:
    """Every kind's table."""
    before = documented()
    sections = []
    with tempfile.TemporaryDirectory() as scratch:
        good = Path(scratch) / "good"
        good.mkdir()
        write_good(good)
        for kind, cases in CASES.items():
            rows = []
            for n, case in enumerate(cases):
                folder = Path(scratch) / kind / str(n)
                folder.mkdir(parents=True)
                (message,) = run_case(case, good, folder).errors
                kept = before.get((kind, case.what), "")
                if not agrees(message, kept):
                    kept = shown(message.replace(str(folder), ELLIPSIS))
                rows.append(table_row(case.what, kept))
            sections.append(f"### {kind}\n\n| what | message |\n|---|---|\n{''.join(rows)}")
    return "\n".join(sections)


if __name__ == "__main__":
    replace_tables(tables())
