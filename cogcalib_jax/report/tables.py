"""The tables of results, once as cells and then as aligned text or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogcalib_jax.baselines.registry import split_folder
from cogcalib_jax.errors import UserError
from cogcalib_jax.report.text import (
    COMMONEST,
    REFERENCES,
    credits,
    is_tempered,
    scoring_notes,
    short_name,
)

Metrics = Mapping[str, Any]
"""The numbers of one task in eval.json."""
# Columns: key in eval.json -> title.
TITLES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "f1": "F1",
    "confidence": "mean\nconfidence",
    "ece": "ECE\n(floor: mean / 95 %)",
    "brier": "Brier",
    "nll": "NLL\n(nats)",
    "auroc": "AUROC",
    "coverage_at_90": "answered at\n90 % accuracy",
    "gold_nll": "right option\n(nats a token)",
    "vocab": "ECE over\nvocabulary",
}
SHARES = ("accuracy", "exact_match", "f1", "confidence", "coverage_at_90")
"""those that are percentages"""
BEST = dict.fromkeys(("ece", "brier", "nll", "gold_nll"), min)
BEST |= dict.fromkeys(("accuracy", "exact_match", "f1", "auroc", "coverage_at_90"), max)
"""those of which one end is best"""
CONFIDENCES = {
    "sequence": "probability",
    "length_normalised": "length-normalised",
    "agreement": "agreement of samples",
    "p_true": "P(True)",
    "platt": "Platt-scaled",
    "isotonic": "isotonic",
}


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: tuple[str, ...]
    """one cell a column; a line break may part it in two"""
    rows: tuple[tuple[str, ...], ...]
    """a cell's further lines, such as an interval, are left out on a terminal"""
    note: str
    """how to read it, one or more lines"""
    page_note: str = ""
    """more lines of the note, on what a terminal does not show"""
    best: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells that hold the best value of their column"""


def comparison_table(seeds: Sequence[Mapping[str, Metrics]]) -> Table:
    """Return one line a method: each element of `seeds` holds method -> numbers of one task.

    With one seed a cell has its 95 % interval in a second line, if eval.json holds one; with
    several it is mean ± standard deviation (n - 1). Raises UserError when seeds do not hold the
    same methods.
    """
    everything = [m for seed in seeds for m in seed.values()]
    open_ended = all("confidences" in m for m in everything)
    keys = _common_methods(seeds)
    with_gold = any(m.get("gold_nll") and not m["single_token_options"] for m in everything)
    columns = ["exact_match", "f1"] if open_ended else ["accuracy"]
    columns += ["confidence", "ece", "brier", "nll", "auroc", "coverage_at_90"]
    columns += ["gold_nll"] * with_gold + ["vocab"] * (not open_ended)
    rows, rescaled = [], False
    for key in keys:
        metrics = [seed[key] for seed in seeds]
        cells = [_with_interval(column, metrics) for column in columns]
        cells[columns.index("ece")] += f" ({floor_cell(metrics)})"
        if is_tempered(key) and metrics[0].get("vocab"):
            cells[-1] += "*"
            rescaled = True
        rows.append((short_name(key), *cells))
    best = _best_cells(columns, keys, seeds)
    notes = _notes(seeds, keys, open_ended)
    key = []
    if len(seeds) == 1 and any("ci95" in m for m in everything):
        key.append("[low, high]: 95 % interval over questions.")
    if best:
        key.append("Bold: the best value of a column among the trained methods, by noise or not.")
    if rescaled:
        notes.append(
            "* the vocabulary's logits divided by a temperature that was fitted over the options."
        )
    notes += [f"{credit}." for credit in credits(keys)]
    if COMMONEST in keys:
        notes.append(
            f"{short_name(COMMONEST)}: the first option of a tie counts as its prediction."
        )
    notes += _costs(seeds[0])
    return Table(("method", *titles(columns)), tuple(rows), "\n".join(notes), "\n".join(key), best)


def _value(metrics: Metrics, column: str) -> float | None:
    value = metrics.get(column)
    return value and value["ece"] if column == "vocab" else value


def _with_interval(column: str, metrics: Sequence[Metrics]) -> str:
    shown = cell([_value(m, column) for m in metrics], column in SHARES)
    interval = metrics[0].get("ci95", {}).get(column) if len(metrics) == 1 else None
    if interval is None or None in interval or shown == "n/a":
        return shown
    low, high = (f"{100 * x:.1f}" if column in SHARES else f"{x:.3f}" for x in interval)
    return f"{shown}\n[{low}, {high}]"


def _best_cells(
    columns: Sequence[str], keys: Sequence[str], seeds: Sequence[Mapping[str, Metrics]]
) -> frozenset[tuple[int, int]]:
    """Find the best value of each column and the cells that read the same; skip references."""
    trained = [(i, key) for i, key in enumerate(keys) if key not in REFERENCES]
    found = set()
    for c, column in enumerate(columns, start=1):
        means = {}
        for i, key in trained:
            values = [_value(seed[key], column) for seed in seeds]
            if None not in values:
                means[i] = float(np.mean(np.array(values, float)))
        shown = {i: cell([mean], column in SHARES) for i, mean in means.items()}
        if column in BEST and len(set(shown.values())) > 1:
            best = shown[BEST[column](means, key=means.get)]
            found |= {(i, c) for i, text in shown.items() if text == best}
    return frozenset(found)


def _notes(
    seeds: Sequence[Mapping[str, Metrics]], keys: Sequence[str], open_ended: bool
) -> list[str]:
    everything = [m for seed in seeds for m in seed.values()]
    sizes = sorted({m["n"] for m in everything})
    n = " to ".join(f"{size:,}" for size in (sizes if len(sizes) < 2 else (sizes[0], sizes[-1])))
    spread = f" in each of {len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else ""
    over = "scores over the options unless the column says otherwise."
    if open_ended:
        over = (
            "confidence is the probability of the generated answer, which is right if it matches"
            " exactly."
        )
    elif not any("ece_classwise" in m for m in everything):
        over = "Brier and NLL of the forecast that an answer is right; its options are not known."
    repeats = sorted({(m["n"], m["n_questions"]) for m in seeds[0].values() if "n_questions" in m})
    notes = [
        f"n = {n} {'rows' if repeats else 'questions'}{spread}; {over}",
        "Floor: the ECE that a calibrated model with these confidences would show by chance at"
        " this n.",
    ]
    notes += [
        f"{rows:,} rows ask {different:,} different questions: repeats of a question count as one"
        " in intervals, floors and p-values."
        for rows, different in repeats
    ]
    notes += scoring_notes(everything)
    if not open_ended and any("confidences" in m for m in everything):
        notes.append("Open questions: exact match, and the generated answer's probability.")
    if any(map(is_tempered, keys)):
        notes.append(
            "+ temperature: the same weights, scores divided by a temperature that was fitted on"
            " calibration questions.\nThese are the confidences that eval.py --predict and"
            " calibration.json give."
        )
    return notes


# Count of models in eval.json -> the baseline that has such a count.
AVERAGED = {
    "mc_passes": "mc_dropout",
    "members": "ensemble",
    "posterior_samples": "laplace_lora",
    "noise_draws": "tfb",
}


def _costs(results: Mapping[str, Metrics]) -> list[str]:
    """Sentences on the cost of rows that average over several models."""
    lines = []
    for key, metrics in results.items():
        for over, usual in AVERAGED.items():
            if number := metrics.get(over):
                # Other rows are of eval.py, which averages passes and members of any models.
                entry = (split_folder(key) or split_folder(usual))[0]
                lines.append(f"{entry.label}: {entry.facts['cost'].format(n=f'{number:,}')}.")
    return list(dict.fromkeys(lines))


def vocabulary_table(results: Mapping[str, Metrics]) -> Table | None:
    """Return the confidences over the whole vocabulary; None if they were not recorded."""
    known = {key: metrics["vocab"] for key, metrics in results.items() if metrics["vocab"]}
    if not known:
        return None
    names = ("ece", "brier", "nll", "auroc", "confidence")
    rows = tuple((short_name(key), *cells([vocab], names)) for key, vocab in known.items())
    note = 'Probability of an option over the whole vocabulary; any other token counts as "other".'
    return Table(("method", *titles(names)), rows, note)


def as_text(table: Table) -> str:
    """Return aligned text for a terminal; a row that adds to the name before it is indented."""
    header = [cell.split("\n") for cell in table.header]
    depth = max(len(lines) for lines in header)
    head = [[([""] * (depth - len(lines)) + lines)[i] for lines in header] for i in range(depth)]
    body = [[cell.split("\n")[0] for cell in row] for row in _indented(table.rows)]
    widths = [max(len(row[i]) for row in head + body) for i in range(len(header))]
    lines = [_aligned(row, widths) for row in head]
    lines.append("  ".join("-" * width for width in widths))
    lines += [_aligned(row, widths) for row in body]
    return "\n".join([*lines, table.note])


def _indented(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Shorten "SFT + temperature" below "SFT" to what it adds."""
    shown, above = [], ""
    for name, *cells in rows:
        added = name.removeprefix(above) if above else name
        part = added != name and added.startswith(" + ")
        shown.append((f"  {added.strip()}" if part else name, *cells))
        above = above if part else name
    return shown


def as_markdown(table: Table) -> str:
    """Return a Markdown table with its note below; the best values are bold."""
    header = [" ".join(cell.split()) for cell in table.header]
    marks = [":---", *["---:"] * (len(header) - 1)]
    rows = [
        [
            f"**{' '.join(cell.split())}**" if (r, c) in table.best else " ".join(cell.split())
            for c, cell in enumerate(row)
        ]
        for r, row in enumerate(table.rows)
    ]
    lines = [header, marks, *rows]
    escaped = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    ]
    notes = "\n".join(filter(None, [table.note, table.page_note]))
    return "\n".join([*escaped, "", notes.replace("*", "\\*")])


def _common_methods(seeds: Sequence[Mapping[str, Metrics]]) -> list[str]:
    keys = list(seeds[0])
    for other in seeds[1:]:
        if list(other) != keys:
            raise UserError(
                f"seeds hold different methods ({', '.join(keys)}; {', '.join(other)}): give runs"
                " of the same comparison"
            )
    return keys


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def cell(values: Sequence[float | None], percent: bool = False) -> str:
    """Return one value, or mean ± standard deviation of several; "n/a" if one is undefined."""
    if any(value is None for value in values):
        return "n/a"
    scale, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    shown = f"{scale * np.mean(values):.{digits}f}"
    if len(values) > 1:
        shown += f" ± {scale * np.std(values, ddof=1):.{digits}f}"
    return shown + unit


def titles(names: Iterable[str]) -> tuple[str, ...]:
    """Return the titles of the columns `names`, keys of `TITLES`."""
    return tuple(TITLES[name] for name in names)


def cells(metrics: Sequence[Metrics], names: Sequence[str]) -> list[str]:
    """Return the cells of the columns `names`; an ECE has its noise floor in brackets."""
    shown = {name: cell([m[name] for m in metrics], name in SHARES) for name in names}
    if "ece" in shown:
        shown["ece"] += f" ({floor_cell(metrics)})"
    return [shown[name] for name in names]


def floor_cell(metrics: Sequence[Metrics]) -> str:
    """Return mean and 95th percentile of the noise floor, averaged over several."""
    floors = [m["ece_noise_floor"] for m in metrics]
    return " / ".join(f"{np.mean([f[name] for f in floors]):.3f}" for name in ("mean", "p95"))


def confidence_table(results: Mapping[str, Metrics]) -> Table | None:
    """Return a line for each method, with its numbers of one task, and each of its confidences;
    None if questions have options."""
    if not all("confidences" in metrics for metrics in results.values()):
        return None
    names = ("confidence", "ece", "brier", "nll", "auroc", "coverage_at_90")
    rows = tuple(
        (f"{short_name(key)}: {CONFIDENCES[name]}", *cells([m], names))
        for key, metrics in results.items()
        for name, m in metrics["confidences"].items()
    )
    header = ("confidence", "mean", *titles(names[1:]))
    notes = [
        "The answers are the same in all rows, and right if they match exactly. Probability: of the"
        " whole answer and its end.",
        "Only the Platt-scaled and the isotonic confidence, fitted on the calibration split,"
        " estimate the probability of being right.",
    ]
    for key, metrics in results.items():
        notes += [f"{short_name(key)}: {note}." for note in metrics.get("notes", ())]
    return Table(header, rows, "\n".join(notes))
