"""Every shape of a row that is read: what the tests read, and the tables of docs/tasks.md.

python -m tests.data.shapes writes the tables.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
BEGIN, END = "<!-- shapes: python -m tests.data.shapes -->\n", "<!-- end of shapes -->\n"

PLANETS = ("Mars", "Venus", "Earth")
"""choices of the first row; the second has them in another order"""
OTHERS = ("Earth", "Mars", "Venus")
FIRST = {"question": "Which is red?", "choices": list(PLANETS), "answer": 0}
SECOND = {"question": "Which is hot?", "choices": list(OTHERS), "answer": 2}
EXPECTED = (("Which is red?", PLANETS, 0), ("Which is hot?", OTHERS, 2))
"""(question, choices, index of the right one) of every shape with choices"""
OPEN = (("Who is it?", ("Ada Lund", "A. Lund"), 0), ("Where?", ("Oslo",), 0))
"""(question, accepted answers, 0) of every shape without choices"""


@dataclass(frozen=True)
class Shape:
    """A file that is read."""

    kind: str
    what: str
    content: str | bytes
    """the file's content; both of its rows mean the same in every shape of its kind"""
    name: str = "train.jsonl"
    options: Mapping[str, Any] = field(default_factory=dict)
    """fields of DataConfig that the shape needs"""
    example: str = ""
    """what the document shows, if it is not the beginning of the content"""

    @property
    def expected(self) -> tuple[tuple[str, tuple[str, ...], int], ...]:
        """The questions that are read."""
        return OPEN if self.kind == "Open questions" else EXPECTED

    def shown(self) -> str:
        """Return the file's first row, and the header of a table, as Markdown.

        Shapes of choices and answers show only what differs from the first row of their table.
        """
        lines = self.example or str(self.content)
        if self.kind in ("Choices", "Answers"):
            row = json.loads(lines.splitlines()[0])
            other = {k: v for k, v in row.items() if repr(v) != repr(FIRST.get(k))}
            lines = json.dumps(other)[1:-1] if other else lines
        rows = 2 if self.name.removesuffix(".gz").endswith((".csv", ".tsv")) else 1
        shown = [line.replace("\t", "⇥").replace("|", "\\|") for line in lines.splitlines()[:rows]]
        return "<br>".join(f"`{line}`" for line in shown)


def lines(*rows: Mapping[str, Any]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(*rows: Mapping[str, Any]) -> bytes:
    """Return rows as the content of a Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def table(separator: str = ",", answers: tuple[str, str] = ("A", "C")) -> str:
    """Return the rows as a table with a column a choice."""
    rows = [
        ("question", "A", "B", "C", "answer"),
        ("Which is red?", *PLANETS, answers[0]),
        ("Which is hot?", *OTHERS, answers[1]),
    ]
    return "".join(separator.join(row) + "\n" for row in rows)


def choices(**columns: Any) -> str:
    """Return the first row and the second with other columns in place of `choices`.

    columns: name -> the value in the first row, and in the second.
    """
    both = []
    for i, row in enumerate((FIRST, SECOND)):
        others = {name: values[i] for name, values in columns.items()}
        both.append({"question": row["question"], **others, "answer": row["answer"]})
    return lines(*both)


def each(name: str, labels: tuple[str, ...] = ("A", "B", "C")) -> dict[str, Any]:
    """Return columns `name` with one of the labels at its end, as `choices` takes them."""
    return {name + label: (PLANETS[i], OTHERS[i]) for i, label in enumerate(labels)}


def answers(first: Any, second: Any, **columns: Any) -> str:
    """Return the rows with other answers; `columns` replace those of both rows."""
    return lines({**FIRST, "answer": first, **columns}, {**SECOND, "answer": second, **columns})


def _labelled(labels: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for row, right in ((FIRST, 0), (SECOND, 2)):
        stored = {"text": row["choices"], "label": list(labels)}
        rows.append({"question": row["question"], "choices": stored, "answerKey": labels[right]})
    return rows


def _pairs(first: str, second: str) -> str:
    rows = []
    for row, right in ((FIRST, "A"), (SECOND, "C")):
        both = zip("ABC", row["choices"], strict=True)
        rows.append(
            {
                "question": row["question"],
                "options": [{first: label, second: text} for label, text in both],
                "answer": right,
            }
        )
    return lines(*rows)


def _by_letter(letters: str) -> dict[str, Any]:
    return {
        "choices": (
            dict(zip(letters, PLANETS, strict=True)),
            dict(zip(letters, OTHERS, strict=True)),
        )
    }


def _yes_no(first: Any, second: Any) -> str:
    return lines(
        {"question": "Which is red?", "choices": ["Yes", "No"], "answer": first},
        {"question": "Which is hot?", "choices": ["no", "yes"], "answer": second},
    )


PLAIN = lines(FIRST, SECOND)
WHO = {"question": "Who is it?", "answer": ["Ada Lund", "A. Lund"]}
WHERE = {"question": "Where?", "answer": "Oslo"}
KEY = {"columns": ("question=stem", "choices=x+y+z", "answer=key")}

SHAPES = [
    Shape("Files", "JSON lines (`.jsonl`)", PLAIN),
    Shape("Files", "JSON lines (`.ndjson`)", PLAIN, "train.ndjson", example="the same lines"),
    Shape(
        "Files",
        "a JSON array (`.json`)",
        json.dumps([FIRST, SECOND]),
        "train.json",
        example="[ROW, ROW]",
    ),
    Shape("Files", "JSON lines (`.json`)", PLAIN, "train.json", example="the same lines"),
    Shape("Files", "CSV; every value is a text, an empty cell is none", table(), "train.csv"),
    Shape("Files", "CSV with semicolons or tabs (the header tells)", table(";"), "train.csv"),
    Shape("Files", "TSV", table("\t"), "train.tsv"),
    Shape("Files", "Parquet", parquet(FIRST, SECOND), "train.parquet", example="the same columns"),
    Shape(
        "Files",
        "a text format with gzip (`.csv.gz`)",
        gzip.compress(table().encode(), mtime=0),
        "train.csv.gz",
        example="the same, compressed",
    ),
    Shape("Choices", "a list of texts", PLAIN),
    Shape("Choices", "under another usual name", choices(options=(PLANETS, OTHERS))),
    Shape("Choices", "whatever the case", choices(Opts=(PLANETS, OTHERS))),
    Shape("Choices", "a column each, by letter", choices(**each(""))),
    Shape("Choices", "a column each, by number", choices(**each("choice", ("1", "2", "3")))),
    Shape("Choices", "a column each, in other words", choices(**each("option_", ("a", "b", "c")))),
    Shape("Choices", "texts with labels, as on the Hub", lines(*_labelled(("A", "B", "C")))),
    Shape("Choices", "an object by letter", choices(**_by_letter("ABC"))),
    Shape("Choices", "a list of labels with texts", _pairs("label", "text")),
    Shape("Choices", "a list of keys with values", _pairs("key", "value")),
    Shape(
        "Choices",
        "a JSON list in a text",
        choices(choices=(json.dumps(list(PLANETS)), json.dumps(list(OTHERS)))),
    ),
    Shape(
        "Choices",
        "a list as Python writes it",
        choices(choices=(repr(list(PLANETS)), repr(list(OTHERS)))),
    ),
    Shape(
        "Choices",
        "a list as numpy shows it",
        choices(choices=tuple(" ".join(map(repr, row)).join("[]") for row in (PLANETS, OTHERS))),
    ),
    Shape(
        "Choices",
        "columns named with `--data.columns question=stem,choices=x+y+z,answer=key`",
        lines(
            {"stem": "Which is red?", "x": "Mars", "y": "Venus", "z": "Earth", "key": 0},
            {"stem": "Which is hot?", "x": "Earth", "y": "Mars", "z": "Venus", "key": 2},
        ),
        options=KEY,
    ),
    Shape("Answers", "the index of a choice, from 0", PLAIN),
    Shape("Answers", "the index as a text", answers("0", "2")),
    Shape("Answers", "the index as tables of numbers have it", answers(0.0, 2.0)),
    Shape(
        "Answers",
        "the index from 1, with `--data.answers-from 1`",
        answers(1, 3),
        options={"answers_from": 1},
    ),
    Shape("Answers", "the letter of a choice", answers("A", "C")),
    Shape("Answers", "in either case, with or without a bracket", answers("(a)", "c)")),
    Shape("Answers", "the label that the row gives it", lines(*_labelled(("1", "2", "3")))),
    Shape("Answers", "the text of a choice", answers("Mars", "Venus")),
    Shape("Answers", "the text, case aside", answers("mars", " VENUS ")),
    Shape(
        "Answers",
        "in another usual column (`answer_key`, `correct`, `label`, `target`, ...)",
        PLAIN.replace('"answer"', '"Label"'),
    ),
    Shape("Open questions", "a text, or all texts that are accepted", lines(WHO, WHERE)),
    Shape(
        "Open questions",
        "lists in texts, if all answers are",
        lines(WHO | {"answer": json.dumps(WHO["answer"])}, WHERE | {"answer": '["Oslo"]'}),
    ),
]
YES_NO = [
    Shape("Answers", "true or false, beside yes and no (or true and false)", _yes_no(True, True)),
    Shape("Answers", "the same as a text", _yes_no("true", "TRUE")),
]
"""shapes with choices of their own: the first and the second choice are right"""


def tables() -> str:
    """Return the tables of the document."""
    kinds: dict[str, list[Shape]] = {}
    for shape in SHAPES + YES_NO:
        kinds.setdefault(shape.kind, []).append(shape)
    return "\n".join(
        f"| {kind} | example |\n|---|---|\n"
        + "".join(f"| {shape.what} | {shape.shown()} |\n" for shape in shapes)
        for kind, shapes in kinds.items()
    )


def documented() -> str:
    """Return the tables that the document has."""
    return DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + tables() + END + rest.partition(END)[2], encoding="utf-8")
