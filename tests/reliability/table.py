"""All cases of bad input, and the messages in messages.md that users read.

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

DOCUMENT = Path(__file__).with_name("messages.md")
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
ELLIPSIS = "…"

_HEADING = re.compile(r"### (.+)")
_ROW = re.compile(r"\| (.+?) \| (`+) ?(.+?) ?\2 \|")


def replace_tables(tables: str) -> None:
    """Write `tables` in place of those of the document; the words before them stay."""
    words = DOCUMENT.read_text(encoding="utf-8").partition("\n### ")[0].rstrip("\n")
    DOCUMENT.write_text(f"{words}\n\n{tables}", encoding="utf-8")


def documented() -> dict[tuple[str, str], str]:
    """Return (kind, mistake) -> message as the document has them."""
    rows, kind = {}, ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
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
