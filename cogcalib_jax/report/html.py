"""report.html: one file that needs no network, from tables, figures, sentences and questions.

Every text that enters the page is escaped, and the home folder and the user's name are left out:
pages are shown to others.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cogcalib_jax.files import without_person
from cogcalib_jax.report.load_run import LONGEST, RunResults
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import COMMONEST, REFERENCES, count, percent, short_name

PIXELS_A_POINT = 110 / 72
"""of a figure on the page"""
MOST = 2000
"""questions on a page"""
MISTAKES = 20
"""rows of a table that needs no script"""


@dataclass(frozen=True)
class Picture:
    """A figure that `canvas.save` has written, and its words."""

    path: Path
    """the PNG; the SVG beside it is the one that the page shows"""
    alt: str
    """the content, for those who do not see it"""
    caption: str
    """how to read it"""
    numbers: str
    """file with the numbers it shows, relative to the folder of a run or method"""
    title: str = ""


@dataclass(frozen=True)
class Section:
    """The findings on one task, in training, or under one condition."""

    title: str
    numbers: str
    """file with the numbers of the tables, relative to the folder of a run or method"""
    place: str = ""
    """what stands before the files: "METHOD/", or nothing if the page lies beside them"""
    verdict: tuple[str, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    """by caption"""
    pictures: tuple[Picture, ...] = ()
    lead: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    """words -> file, relative to the page"""
    questions: Questions | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files with its numbers."""
        names = [self.numbers, *(picture.numbers for picture in self.pictures)]
        return tuple(dict.fromkeys(self.place + name for name in names))


@dataclass(frozen=True)
class Card:
    """An answer that a reader should see first."""

    title: str
    lines: tuple[str, ...]
    """the first is the answer itself"""
    code: tuple[str, ...] = ()
    """shown as typed, each in a block of its own"""


@dataclass(frozen=True)
class Making:
    """The way in which the numbers of a page were made."""

    commands: tuple[str, ...]
    facts: Mapping[str, str]
    """provenance by name"""
    configs: Mapping[str, str]
    """resolved config by its file"""
    tables: Mapping[str, Table]
    """by caption: which config and command belongs to what"""


def page(
    title: str, lead: str, sections: Sequence[Section], making: Making, cards: Sequence[Card] = ()
) -> str:
    """Return the whole page; the cards stand before everything else."""
    environment = _environment()
    style, script = (_part(name) for name in ("style.css", "script.js"))
    # Nothing may be fetched, and no script may run but this one: neither by the page as written,
    # nor by anything that data might smuggle in.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'"
    )
    return environment.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=sections,
        making=making,
        cards=cards,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cogcalib_jax.report", "templates"),
        autoescape=True,
        finalize=_without_person,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": _svg,
        "csv": _csv_link,
        "json": _json,
        "quote": quote,
        "lines": str.splitlines,
    }
    return environment


@cache
def _part(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _without_person(value: Any) -> Any:
    # What is marked up already is data of a picture, a table or this module's own.
    return (
        value if isinstance(value, Markup) or not isinstance(value, str) else without_person(value)
    )


def _svg(picture: Picture) -> dict[str, Any]:
    """Return source, width and height (pixels) of a picture: given, they keep the page still."""
    content = picture.path.with_suffix(".svg").read_text(encoding="utf-8")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"|$', content)
    width, height = (round(float(n) * PIXELS_A_POINT) for n in size.groups())
    data = base64.b64encode(content.encode()).decode("ascii")
    return {"src": Markup(f"data:image/svg+xml;base64,{data}"), "width": width, "height": height}


def _json(data: Any) -> Markup:
    """Return `data` as JSON in which nothing can end the element that holds it."""
    text = without_person(json.dumps(data, ensure_ascii=False))
    return Markup(re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text))


def _csv_link(table: Table) -> Markup:
    """Return a table as the address of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(" ".join(cell.split()) for cell in table.header)
    writer.writerows([" ".join(cell.split()) for cell in row] for row in table.rows)
    return Markup("data:text/csv;charset=utf-8," + quote(without_person(text.getvalue())))


@dataclass(frozen=True)
class Questions:
    """The questions as the page's script reads them, and as tables without it."""

    data: Mapping[str, Any]
    """`questions`: id, text and right answer of each; `answers`: method -> [given, right,
    confidence] of each"""
    surest_mistakes: Mapping[str, Table]
    """method -> its wrong answers, the surest first"""
    note: str


def browse_questions(run: RunResults, task: str) -> Questions:
    """Return the questions of a task; of more than `MOST`, those with the surest mistakes."""
    first = run.methods[0].predictions[task]
    predictions = {
        short_name(m.key): m.predictions[task]
        for m in sorted(run.methods, key=lambda m: m.key in REFERENCES)
        if m.key != COMMONEST and m.predictions[task].ids == first.ids
    }
    mistakes = {name: np.where(p.correct, -1.0, p.confidence) for name, p in predictions.items()}
    n = len(first.ids)
    worst = np.max(list(mistakes.values()), axis=0)
    shown = np.sort(np.argsort(-worst, kind="stable")[:MOST])
    texts = [x if len(x) <= LONGEST else f"{x[: LONGEST - 4]} ..." for x in first.texts]
    asked = [{"id": first.ids[i], "text": texts[i], "answer": first.expected[i]} for i in shown]
    answers = {
        name: [[p.given[i], bool(p.correct[i]), round(float(p.confidence[i]), 4)] for i in shown]
        for name, p in predictions.items()
    }
    tables = {}
    for name, p in predictions.items():
        surest = np.argsort(-mistakes[name], kind="stable")[:MISTAKES]
        rows = tuple(
            (p.ids[i], texts[i], p.given[i], p.expected[i], percent(p.confidence[i]))
            for i in surest
            if not p.correct[i]
        )
        if rows:
            header = ("id", "question", "answer given", "right answer", "confidence")
            tables[name] = Table(header, rows, "")
    note = ""
    if n > MOST:
        note = (
            f"{count(MOST, 'question')} of {n:,} are on this page: those that some method got most"
            f" surely wrong. predictions/{task}.jsonl has them all."
        )
    return Questions({"questions": asked, "answers": answers}, tables, note)
