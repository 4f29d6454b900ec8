"""report.html: one file that needs no network, from parts that are already words and pictures.

Every text that enters the page is escaped here, wherever it came from.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cogcalib_jax.reporting.tables import Table

# Nothing may be fetched: not by the page as written, nor by anything that data might smuggle in.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d9dee3; --wash: #f5f7f9;
  --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e4e7eb; --muted: #9aa4af; --line: #343a41; --wash: #1d2126;
          --accent: #6cb8e6; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; background: var(--paper);
       color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; }
.lead, figcaption, .note { color: var(--muted); }
.note { font-size: .875rem; white-space: pre-line; }
.verdict { border-left: 4px solid var(--accent); background: var(--wash); margin: 1.5rem 0;
           padding: .75rem 1.25rem; }
.verdict p { margin: .4rem 0; max-width: 56rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { vertical-align: bottom; white-space: pre-line; font-size: .8125rem; line-height: 1.3;
           color: var(--muted); border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
figure { margin: 1.5rem 0 2.5rem; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .9375rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; background: var(--wash); padding: .9rem 1.1rem; border-radius: 4px;
      font-size: .8125rem; line-height: 1.45; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
"""


@dataclass(frozen=True)
class Picture:
    """A plot and what it shows, in words."""

    path: Path
    alt: str
    """the content, for those who do not see it"""
    caption: str
    """how to read it"""


@dataclass(frozen=True)
class Section:
    """What was found on one task."""

    title: str
    verdict: tuple[str, ...]
    tables: Mapping[str, Table]
    """by caption"""
    pictures: tuple[Picture, ...]


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    command: str,
    facts: Mapping[str, str],
    configs: Mapping[str, str],
) -> str:
    """The whole page; `facts` is provenance by name, `configs` resolved config by its file."""
    body = "\n".join(_section(section) for section in sections)
    rows = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    files = "\n".join(
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for name, text in configs.items()
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
</header>
<main>
{body}
<section>
<h2>How these numbers were made</h2>
<h3>Command</h3>
<pre>{escape(command)}</pre>
<h3>Provenance</h3>
<dl>
{rows}
</dl>
<h3>Resolved configuration</h3>
{files}
</section>
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    if section.verdict:
        lines = "\n".join(f"<p>{escape(line)}</p>" for line in section.verdict)
        parts.append(f'<div class="verdict">\n{lines}\n</div>')
    parts += [_table(caption, table) for caption, table in section.tables.items()]
    parts += [_figure(picture) for picture in section.pictures]
    return "\n".join([*parts, "</section>"])


def _table(caption: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    return (
        f'<h3>{escape(caption)}</h3>\n<div class="scroll" tabindex="0" role="region"'
        f' aria-label="{escape(caption)}"><table>\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{rows}\n</tbody>\n</table></div>\n<p class="note">{escape(table.note)}</p>'
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )
