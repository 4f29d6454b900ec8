"""All cases, and what docs/reliability.md says that a user reads.

The document is the expectation: a message that changes is changed there.
"""

import re
from pathlib import Path

from tests.reliability.case import Case
from tests.reliability.cases_adapters import ADAPTERS
from tests.reliability.cases_commands import COMMAND_LINES, PRESETS
from tests.reliability.cases_data import QUESTIONS
from tests.reliability.cases_models import TOKENIZERS, WEIGHT_FILES
from tests.reliability.cases_runs import RUNS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
CASES: dict[str, list[Case]] = {
    "Presets": PRESETS,
    "Command lines": COMMAND_LINES,
    "Questions and predictions": QUESTIONS,
    "Tokenizers": TOKENIZERS,
    "Weights": WEIGHT_FILES,
    "Adapters": ADAPTERS,
    "Run folders": RUNS,
}
ALL = {(kind, case.what): case for kind, cases in CASES.items() for case in cases}
SECTION = "\n## Bad input\n"
ELLIPSIS = "…"

_HEADING = re.compile(r"### (.+)")
_ROW = re.compile(r"\| (.+?) \| (`+) ?(.+?) ?\2 \|")


def replace_tables(tables: str) -> None:
    """Put `tables` in place of those under "Bad input"; the words before them stay."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, heading, rest = text.partition(SECTION)
    section, following = _section(rest)
    words = section.partition("\n### ")[0].rstrip("\n")
    new = f"{before}{heading}{words}\n\n{tables}"
    DOCUMENT.write_text(new + (f"\n{following}" if following else ""), encoding="utf-8")


def documented() -> dict[tuple[str, str], str]:
    """(kind, what is wrong) -> message, of the tables under "Bad input"."""
    section, _ = _section(DOCUMENT.read_text(encoding="utf-8").partition(SECTION)[2])
    rows, kind = {}, ""
    for line in section.splitlines():
        if heading := _HEADING.fullmatch(line):
            kind = heading[1]
        elif row := _ROW.fullmatch(line):
            rows[kind, row[1]] = row[3].replace("\\|", "|")
    return rows


def table_row(what: str, message: str) -> str:
    """A line that `documented` reads back."""
    ticks, space = ("``", " ") if "`" in message else ("`", "")
    escaped = message.replace("|", "\\|")
    return f"| {what} | {ticks}{space}{escaped}{space}{ticks} |\n"


def agrees(line: str, message: str) -> bool:
    """Whether `line` is the documented message, in which … stands for what is left out."""
    pattern = ".*".join(map(re.escape, message.split(ELLIPSIS)))
    return re.fullmatch(pattern, line) is not None


def _section(text: str) -> tuple[str, str]:
    """(what stands before the next heading of a section, the rest)."""
    found = re.search(r"^## ", text, flags=re.MULTILINE)
    at = found.start() if found else len(text)
    return text[:at], text[at:]
