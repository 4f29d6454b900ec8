"""The comparison table, once as cells and then as aligned text or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cogcalib_jax.errors import UserError
from cogcalib_jax.report.names import COMMONEST, credits, is_tempered, short_name
from cogcalib_jax.report.text import scoring_notes

Metrics = Mapping[str, Any]
"""The numbers of one task in eval.json."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: tuple[str, ...]
    """one cell a column; a line break may part it in two"""
    rows: tuple[tuple[str, ...], ...]
    note: str
    """how to read it, one or more lines"""


OVER_OPTIONS = "scores over the options unless said."
OVER_ANSWERS = (
    "confidence is the probability of the generated answer, right where it matches exactly."
)
OVER_CONFIDENCES = (
    "Brier and NLL of the forecast that an answer is right; its options are not known."
)


def comparison_table(seeds: Sequence[Mapping[str, Metrics]]) -> Table:
    """One line a method: each element of `seeds` holds method -> numbers of one task.

    With several seeds a cell is mean ± standard deviation (n - 1) over them. Raises UserError when
    seeds do not hold the same methods.
    """
    open_ended = all("confidences" in m for seed in seeds for m in seed.values())
    columns: list[tuple[str, Callable[[Metrics], float | None], bool]]  # bool: a percentage
    if open_ended:
        columns = [
            ("exact match", lambda m: m["exact_match"], True),
            ("F1", lambda m: m["f1"], True),
        ]
    else:
        columns = [("accuracy", lambda m: m["accuracy"], True)]
    ece = len(columns)
    columns += [
        ("ECE\n(floor: mean / 95 %)", lambda m: m["ece"], False),
        ("Brier", lambda m: m["brier"], False),
        ("NLL\n(nats)", lambda m: m["nll"], False),
        ("AUROC", lambda m: m["auroc"], False),
        ("answered at\n90 % accuracy", lambda m: m["coverage_at_90"], True),
    ]
    every = [m for seed in seeds for m in seed.values()]
    if any(m.get("gold_nll") and not m["single_token_options"] for m in every):
        columns.append(("right option\n(nats a token)", lambda m: m.get("gold_nll"), False))
    if not open_ended:
        columns.append(
            ("ECE over\nvocabulary", lambda m: m.get("vocab") and m["vocab"]["ece"], False)
        )
    keys = _common_methods(seeds)
    rows = []
    rescaled = False
    for key in keys:
        metrics = [seed[key] for seed in seeds]
        cells = [cell([value(m) for m in metrics], percent) for _, value, percent in columns]
        cells[ece] += f" ({floor_cell(metrics)})"
        if is_tempered(key) and metrics[0].get("vocab"):
            cells[-1] += "*"
            rescaled = True
        rows.append((short_name(key), *cells))
    sizes = sorted({seed[key]["n"] for seed in seeds for key in keys})
    n = " to ".join(f"{size:,}" for size in (sizes if len(sizes) < 2 else (sizes[0], sizes[-1])))
    spread = f" in each of {len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else ""
    over = OVER_ANSWERS if open_ended else OVER_OPTIONS
    if not open_ended and not any("ece_classwise" in m for seed in seeds for m in seed.values()):
        over = OVER_CONFIDENCES
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
    notes += scoring_notes(m for seed in seeds for m in seed.values())
    if not open_ended and any("confidences" in m for seed in seeds for m in seed.values()):
        notes.append("Of open questions: exact match, and the generated answer's probability.")
    if any(map(is_tempered, keys)):
        notes.append(
            "+ temperature: the same weights, scores divided by a temperature that was fitted on"
            " calibration questions.\nThese are the confidences that eval.py --predict and"
            " calibration.json give."
        )
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
    return Table(("method", *(name for name, _, _ in columns)), tuple(rows), "\n".join(notes))


def _costs(results: Mapping[str, Metrics]) -> list[str]:
    """What averaging over several models costs, where rows do."""
    lines = []
    for key, metrics in results.items():
        if passes := metrics.get("mc_passes"):
            what = "MC-dropout: probabilities averaged over {} passes with dropout on"
            if key == "blob":
                what = "BLoB: probabilities averaged over {} draws of A"
            lines.append(f"{what.format(passes)}, so an answer costs {passes} times as much.")
        if members := metrics.get("members"):
            lines.append(
                f"Ensemble: probabilities averaged over {members} members on one base, each"
                f" fine-tuned by itself, so training and an answer cost {members} times as much."
            )
        if draws := metrics.get("posterior_samples"):
            lines.append(
                f"Laplace-LoRA: probabilities averaged over {draws:,} draws of the options' logits;"
                " it costs a forward pass over the fine-tuning rows, and for an answer one, with a"
                " backward pass for each option in both. Over the vocabulary the trained model says"
                " how probable an option is at all."
            )
    return list(dict.fromkeys(lines))


def vocabulary_table(results: Mapping[str, Metrics]) -> Table | None:
    """The same confidences taken over the whole vocabulary, None where they were not recorded."""
    known = {key: metrics["vocab"] for key, metrics in results.items() if metrics["vocab"]}
    if not known:
        return None
    rows = []
    for key, vocab in known.items():
        rows.append(
            (
                short_name(key),
                f"{cell([vocab['ece']])} ({floor_cell([vocab])})",
                *(cell([vocab[name]]) for name in ("brier", "nll", "auroc")),
                cell([vocab["confidence"]], percent=True),
            )
        )
    header = (
        "method",
        "ECE\n(floor: mean / 95 %)",
        "Brier",
        "NLL\n(nats)",
        "AUROC",
        "mean\nconfidence",
    )
    note = (
        'Probability of an option over the whole vocabulary; what is no option counts as "other".'
    )
    return Table(header, tuple(rows), note)


def as_text(table: Table) -> str:
    """Aligned plain text for a terminal; a row that adds to the name before it is indented."""
    header = [cell.split("\n") for cell in table.header]
    depth = max(len(lines) for lines in header)
    head = [[([""] * (depth - len(lines)) + lines)[i] for lines in header] for i in range(depth)]
    body = [list(row) for row in _indented(table.rows)]
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
    """A Markdown table, its note below."""
    header = [" ".join(cell.split()) for cell in table.header]
    marks = [":---", *["---:"] * (len(header) - 1)]
    lines = [header, marks, *table.rows]
    escaped = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    ]
    return "\n".join([*escaped, "", table.note.replace("*", "\\*")])


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
    """One value, or mean ± standard deviation of several; n/a where one is undefined."""
    if any(value is None for value in values):
        return "n/a"
    scale, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    shown = f"{scale * np.mean(values):.{digits}f}"
    if len(values) > 1:
        shown += f" ± {scale * np.std(values, ddof=1):.{digits}f}"
    return shown + unit


def floor_cell(metrics: Sequence[Metrics]) -> str:
    """Mean and 95th percentile of the noise floor, averaged over several."""
    floors = [m["ece_noise_floor"] for m in metrics]
    return " / ".join(f"{np.mean([f[name] for f in floors]):.3f}" for name in ("mean", "p95"))


CONFIDENCES = {
    "sequence": "probability",
    "length_normalised": "length-normalised",
    "agreement": "agreement of samples",
    "p_true": "P(True)",
    "platt": "Platt-scaled",
    "isotonic": "isotonic",
}


def confidence_table(results: Mapping[str, Metrics]) -> Table | None:
    """A line for each method and each of its confidences; None where questions have options.

    results: method -> numbers of one task.
    """
    if not all("confidences" in metrics for metrics in results.values()):
        return None
    rows = []
    for key, metrics in results.items():
        for name, m in metrics["confidences"].items():
            rows.append(
                (
                    f"{short_name(key)}: {CONFIDENCES[name]}",
                    cell([m["confidence"]], percent=True),
                    f"{cell([m['ece']])} ({floor_cell([m])})",
                    *(cell([m[score]]) for score in ("brier", "nll", "auroc")),
                    cell([m["coverage_at_90"]], percent=True),
                )
            )
    header = (
        "confidence",
        "mean",
        "ECE\n(floor: mean / 95 %)",
        "Brier",
        "NLL\n(nats)",
        "AUROC",
        "answered at\n90 % accuracy",
    )
    notes = [
        "Of the same answers, right where they match exactly. Probability: of the whole answer and"
        " its end.",
        "Only the Platt-scaled and the isotonic one, fitted on the calibration split, are meant to"
        " be the probability of being right.",
    ]
    for key, metrics in results.items():
        notes += [f"{short_name(key)}: {note}." for note in metrics.get("notes", ())]
    return Table(header, tuple(rows), "\n".join(notes))
