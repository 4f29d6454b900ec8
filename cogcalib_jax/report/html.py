"""report.html: one file that needs no network, from parts that are already words and pictures.

Every text that enters the page is escaped here, wherever it came from, and the home folder and the
user's name are left out: pages are shown to others.
"""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from cogcalib_jax.files import without_person
from cogcalib_jax.report.canvas import DPI, SCREEN_DPI
from cogcalib_jax.report.tables import Table

MAKING = "How these numbers were made"

# Nothing may be fetched: not by the page as written, nor by anything that data might smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d9dee3; --wash: #f5f7f9;
  --accent: #0069a5;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e4e7eb; --muted: #9aa4af; --line: #343a41; --wash: #1d2126;
          --accent: #6cb8e6; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 80rem; background: var(--paper);
       color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, sans-serif;
       overflow-wrap: anywhere; }
a { color: var(--accent); }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 3.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
.lead, figcaption, .note { color: var(--muted); }
.note { font-size: .875rem; white-space: pre-line; margin: .6rem 0 .4rem; }
nav ul, .links { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; list-style: none;
     margin: .75rem 0; padding: 0; font-size: .9375rem; }
.verdict { border-left: 4px solid var(--accent); background: var(--wash); margin: 1.5rem 0;
           padding: .75rem 1.25rem; }
.verdict p { margin: .4rem 0; max-width: 56rem; }
.verdict h2 { margin: .25rem 0 .5rem; }
.verdict pre { background: var(--paper); margin: .5rem 0; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
        margin-top: 1.75rem; }
caption { text-align: left; font-weight: 600; font-size: 1rem; padding-bottom: .4rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2.5rem); }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, .words td, .words th { text-align: left; }
th:first-child { padding-left: 0; }
thead th { vertical-align: bottom; white-space: pre-line; font-size: .8rem; line-height: 1.3;
           color: var(--muted); border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
figure { margin: 2rem 0 3rem; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .9375rem; }
img { display: block; max-width: 100%; min-width: min(44rem, 180vw); height: auto; background: #fff;
      border-radius: 4px; }
pre { overflow-x: auto; background: var(--wash); padding: .9rem 1.1rem; border-radius: 4px;
      font-size: .8125rem; line-height: 1.45; overflow-wrap: normal; }
dl { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: .25rem 1.25rem; }
dt { color: var(--muted); } dd { margin: 0; }
summary { cursor: pointer; color: var(--accent); }
.source { font-size: .8125rem; margin: .25rem 0 .75rem; }
.source dl { margin: .4rem 0; }
@media print { .scroll { overflow: visible; } img { min-width: 0; } }
"""


@dataclass(frozen=True)
class Picture:
    """A plot and what it shows, in words."""

    path: Path
    alt: str
    """the content, for those who do not see it"""
    caption: str
    """how to read it"""
    numbers: str
    """file with the numbers it shows, relative to the folder of a run or method"""


@dataclass(frozen=True)
class Source:
    """What made the numbers of a section."""

    numbers: str
    """file with the numbers of the tables, relative to the folder of a run or method"""
    place: str
    """what stands before the files: "METHOD/", or nothing where the page lies beside them"""
    commands: tuple[str, ...]
    configs: tuple[str, ...]
    """names among those of the page"""


@dataclass(frozen=True)
class Section:
    """What was found on one task, in training, or under one condition."""

    title: str
    source: Source
    verdict: tuple[str, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    """by caption"""
    pictures: tuple[Picture, ...] = ()
    lead: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    """words -> file, relative to the page"""


@dataclass(frozen=True)
class Card:
    """What a reader should know first."""

    title: str
    lines: tuple[str, ...]
    code: tuple[str, ...] = ()
    """shown as typed, each in a block of its own"""


@dataclass(frozen=True)
class Making:
    """How the numbers of a page were made."""

    commands: tuple[str, ...]
    facts: Mapping[str, str]
    """provenance by name"""
    configs: Mapping[str, str]
    """resolved config by its file"""
    tables: Mapping[str, Table]
    """by caption: which config and command belongs to what"""


def escape(text: str) -> str:
    """`text` as HTML shows it, without who made it."""
    return html.escape(without_person(text))


def page(
    title: str, lead: str, sections: Sequence[Section], making: Making, cards: Sequence[Card] = ()
) -> str:
    """The whole page; the cards stand before everything else."""
    anchors = {name: f"config-{number}" for number, name in enumerate(making.configs, start=1)}
    body = "\n".join(
        _section(section, f"section-{number}", anchors)
        for number, section in enumerate(sections, start=1)
    )
    contents = "\n".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<nav aria-label="Contents">
<ul>
{contents}
<li><a href="#making">{MAKING}</a></li>
</ul>
</nav>
</header>
<main>
{"".join(map(_card, cards))}{body}
{_making(making, anchors)}
</main>
</body>
</html>
"""


def _card(card: Card) -> str:
    lines = "\n".join(f"<p>{escape(line)}</p>" for line in card.lines)
    code = "\n".join(f"<pre>{escape(text)}</pre>" for text in card.code)
    return (
        f'<section class="verdict">\n<h2>{escape(card.title)}</h2>\n{lines}\n{code}\n</section>\n'
    )


def _making(making: Making, anchors: Mapping[str, str]) -> str:
    commands = "\n".join(f"<pre>{escape(command)}</pre>" for command in making.commands)
    facts = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in making.facts.items()
    )
    files = "\n".join(
        f'<details id="{anchors[name]}"><summary>{escape(name)}</summary>'
        f"<pre>{escape(text)}</pre></details>"
        for name, text in making.configs.items()
    )
    tables = "\n".join(
        _table(caption, table, "scroll words") for caption, table in making.tables.items()
    )
    return f"""<section id="making">
<h2>{MAKING}</h2>
<h3>Command</h3>
{commands}
{tables}
<h3>Provenance</h3>
<dl>
{facts}
</dl>
<h3>Resolved configuration</h3>
{files}
</section>"""


def _section(section: Section, anchor: str, anchors: Mapping[str, str]) -> str:
    source = section.source
    parts = [f'<section id="{anchor}">\n<h2>{escape(section.title)}</h2>']
    if section.lead:
        parts.append(f'<p class="lead">{escape(section.lead)}</p>')
    if section.verdict:
        lines = "\n".join(f"<p>{escape(line)}</p>" for line in section.verdict)
        parts.append(f'<div class="verdict">\n{lines}\n</div>')
    if section.links:
        links = "\n".join(
            f'<li><a href="{escape(quote(target))}">{escape(words)}</a></li>'
            for words, target in section.links.items()
        )
        parts.append(f'<ul class="links">\n{links}\n</ul>')
    for caption, table in section.tables.items():
        parts += [_table(caption, table), _source(caption, source, source.numbers, anchors)]
    for picture in section.pictures:
        parts.append(_figure(picture, _source(picture.path.name, source, picture.numbers, anchors)))
    return "\n".join([*parts, "</section>"])


def _source(what: str, source: Source, numbers: str, anchors: Mapping[str, str]) -> str:
    """Which numbers, command and configs a table or picture comes from, folded away."""
    commands = "<br>".join(f"<code>{escape(command)}</code>" for command in source.commands)
    configs = ", ".join(f'<a href="#{anchors[name]}">{escape(name)}</a>' for name in source.configs)
    return (
        f'<details class="source"><summary aria-label="Source of {escape(what)}">Source</summary>\n'
        f"<dl><dt>Numbers</dt><dd>{escape(source.place + numbers)}</dd>"
        f"<dt>Command</dt><dd>{commands}</dd><dt>Configuration</dt><dd>{configs}</dd></dl></details>"
    )


def _table(caption: str, table: Table, kind: str = "scroll") -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    # A region that scrolls must be reachable with the keyboard, and named.
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>{note}"
    )


def _figure(picture: Picture, source: str) -> str:
    content = picture.path.read_bytes()
    data = base64.b64encode(content).decode("ascii")
    # Bytes 16 to 24 of a PNG: its width and height, big-endian. Given, they keep the page still.
    pixels = struct.unpack(">II", content[16:24])
    width, height = (round(size * SCREEN_DPI / DPI) for size in pixels)
    return (
        f'<figure>\n<div class="scroll" tabindex="0" role="region"'
        f' aria-label="Picture {escape(picture.path.name)}">'
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}"'
        f' alt="{escape(picture.alt)}"></div>\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n{source}\n</figure>"
    )
