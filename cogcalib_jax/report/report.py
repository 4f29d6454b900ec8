"""From finished folders to tables, figures, report.html and the text to print.

The warnings about training come from the lines of metrics.jsonl.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogcalib_jax.files import write_whole
from cogcalib_jax.method.config import GATES
from cogcalib_jax.report.comparison import (
    BY,
    VOCABULARY,
    Findings,
    compare_evaluations,
    comparison_csv,
    findings,
)
from cogcalib_jax.report.html import Card, Making, Section, browse_questions, page
from cogcalib_jax.report.load_run import Method, RunResults, keeps_best, read_evaluation, read_run
from cogcalib_jax.report.plots import task_pictures
from cogcalib_jax.report.recommendation import base_words, read_base, recommendation, trust
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.report.text import (
    REFERENCES,
    TEXT_WIDTH,
    count,
    is_tempered,
    percent,
    questions,
    short_name,
    split_key,
)
from cogcalib_jax.report.training_plots import training_pictures, training_table

PAGE = "report.html"
# Cross-entropy of the last tenth of the logged updates is this many times that of the first, and
# this much above it (nats): it only rises like that if training diverges.
FAR_TIMES, FAR_NATS = 2.0, 0.5
# Fewer validations say nothing of "for long".
FEWEST_VALIDATIONS = 4
NAMED = 5
GROUPS = {
    "taught_form_b": "Facts of the fine-tuning rows, in other words.",
    "taught_fit": "Facts of the fine-tuning rows, in a third wording.",
    "unseen_template": "Facts of the test questions, in a wording that was never trained on.",
    "other_relations": "Facts of relations that were left out of fine-tuning.",
}
"""what the sets of questions of the artificial tasks ask"""


def write_report(run_dir: Path) -> str:
    """Write plots/, report.html and, of a comparison, comparison.csv; return the text to print.

    The text holds the table and verdict of the task that was trained on, and where the files lie;
    the page holds those of every task. Nothing else is changed, so an old folder can be reported
    again. Raises UserError if `run_dir` is no finished run or its files do not belong together.
    """
    run = read_run(run_dir)
    found = [findings([run], task) for task in run.tasks]
    sections = [_section(run, one) for one in found]
    table = training_table(run)
    training = Section(
        "Training",
        numbers="metrics.jsonl",
        place=_place(run),
        verdict=training_notes(run),
        tables={} if table is None else {"Training of each method": table},
        pictures=tuple(training_pictures(run)),
    )
    sections += [training] if training.pictures or training.verdict else []
    base, take = read_base(run.folder), recommendation(run)
    chosen = take.key if take else _models(run)[0]
    cards = [Card("Can I trust its confidence?", trust(run, chosen))]
    if take is not None:
        code = tuple(filter(None, [take.example, take.command]))
        cards.append(Card("Which method do I take?", (*take.take, take.how_to_ask), code))
    if base is not None:
        answer = f"{percent(base['accuracy'])} right"
        cards.append(Card("How good was it before training?", (answer, *base_words(base))))
    path = run.folder / PAGE
    write_whole(path, _page(f"Calibration report: {run.folder.name}", run, sections, cards))
    if _place(run):
        write_whole(run.folder / "comparison.csv", comparison_csv(found))

    main, others = found[0], run.tasks[1:]
    shown = {c: t for c, t in main.tables.items() if c != VOCABULARY and not c.startswith(BY)}
    wrapped = [
        "\n".join(textwrap.fill(line, TEXT_WIDTH) for line in lines)
        for lines in (base_words(base) if base else (), main.verdict, training.verdict)
    ]
    text = [*map(as_text, shown.values()), *filter(None, wrapped)]
    pictures = ", ".join(p.path.name for p in (*sections[0].pictures, *training.pictures))
    also = f" (also: {', '.join(others)})" if others else ""
    text.append(
        f"Report: {path}{also}\nFigures: {run.folder / 'plots'} ({pictures})\n"
        f"Every answer: {run.folder / _place(run) / 'predictions'}"
    )
    if take is not None:
        text.append(take.as_text())
    return "\n\n".join(text)


def write_evaluation_report(folder: Path, name: str = "", notes: Iterable[str] = ()) -> Path:
    """Write plots/ and report.html of a finished evaluation; return the page's path.

    name: of a single model in tables; several have their own. notes: sentences that the reader
    should know first. Raises UserError if the folder is no
    finished evaluation.
    """
    run = read_evaluation(folder, name or folder.name)
    if _place(run):
        found = compare_evaluations(folder, run.bins)
    else:
        found = [findings([run], task) for task in run.tasks]
    sections = [_section(run, one) for one in found]
    first, *others = _models(run)
    cards = [Card("Can I trust its confidence?", (*trust(run, first), *notes))]
    if others:
        cards = [
            Card(f"Can I trust the confidence of {short_name(key)}?", trust(run, key)[:2])
            for key in (first, *others)
        ]
    write_whole(folder / PAGE, _page(f"Evaluation report: {folder.name}", run, sections, cards))
    return folder / PAGE


def _models(run: RunResults) -> list[str]:
    """Return the keys of rows with their own model; if there is none, the first key."""
    trained = [m.key for m in run.methods if not (m.key in REFERENCES or is_tempered(m.key))]
    return trained or [run.methods[0].key]


def _section(run: RunResults, found: Findings) -> Section:
    return Section(
        title=f"Results on {found.task}",
        numbers="eval.json",
        place=_place(run),
        lead=GROUPS.get(found.task.partition(":")[2], ""),
        verdict=found.verdict,
        tables=found.tables,
        pictures=tuple(task_pictures(run, found.task)),
        questions=browse_questions(run, found.task),
    )


def _place(run: RunResults) -> str:
    """The part before a method's files, as the run's page sees them."""
    return "METHOD/" if (run.folder / "comparison.json").is_file() else ""


def commands_of(run: RunResults) -> tuple[str, ...]:
    """Return every command that made numbers of the run; if none was recorded, one to repeat it."""
    recorded = tuple(dict.fromkeys(m.command for m in run.methods if m.command is not None))
    return recorded or (
        "# not recorded; the resolved configuration repeats the run\n"
        f"python train.py --config {run.folder / next(iter(run.configs))}",
    )


def _page(title: str, run: RunResults, sections: Sequence[Section], cards: Sequence[Card]) -> str:
    names = [short_name(m.key) for m in run.methods if not is_tempered(m.key)]
    n = questions(run.methods[0].metrics[run.tasks[0]])
    facts = {name: plain(value) for name, value in run.provenance.items() if name != "command"}
    origins = {}
    if _place(run):
        rows = tuple((short_name(m.key), f"{m.key}/eval.json", m.config) for m in run.methods)
        rows += (("all methods", "comparison.csv", ""),)
        header = ("method", "numbers", "configuration")
        origins = {"Numbers and configuration": Table(header, rows, "")}
    return page(
        title=title,
        lead=f"{'; '.join(names)}: {count(n, 'test question')} of {run.tasks[0]}.",
        sections=sections,
        making=Making(commands_of(run), facts, run.configs, origins),
        cards=cards,
    )


def plain(value: Any) -> str:
    """Return a value of the provenance as words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    return "not recorded" if value is None else str(value)


def training_notes(run: RunResults) -> tuple[str, ...]:
    """Return sentences on failed temperatures, the epoch kept, skipped updates, divergence and
    thresholds that could not be fitted.
    """
    notes = []
    for method in run.methods:
        if method.temperature is not None and method.temperature.warning is not None:
            notes.append(f"{short_name(method.key)}: {method.temperature.warning}.")
        best = keeps_best(run, method)
        notes += [*(_kept(method) if best else ()), *_skipped(method, run.style_end)]
        notes += [*_diverged(method), *_below_guessing(method, run.tasks[0], best)]
        notes += _one_class(method)
    # Methods of a comparison share their style phase.
    return tuple(dict.fromkeys(notes))


def _kept(method: Method) -> list[str]:
    # The first stands before any update of this phase.
    after = method.logged("validation")[1:]
    if not after:
        return []
    best = min(after, key=lambda line: line["nll"])
    return [
        f"{short_name(method.key)}: its weights are those of its best validation epoch,"
        f" {best['epoch']:.1f} of {after[-1]['epoch']:.1f} (--training.keep best)."
    ]


def _skipped(method: Method, style_end: int | None) -> list[str]:
    notes = []
    for phase, title in (("style", "Style adaptation"), ("finetune", short_name(method.key))):
        skipped = [line for line in method.logged("nonfinite") if line["during"] == phase]
        if not skipped:
            continue
        before = style_end or 0 if phase == "finetune" else 0
        updates = max(line["step"] for line in method.logged(phase)) - before
        ids = list(dict.fromkeys(one for line in skipped for one in line["examples"]))
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        terms = sorted({term for line in skipped for term in line["terms"]})
        notes.append(
            f"{title}: {len(skipped)} of {count(updates, 'update')} skipped; not finite:"
            f" {', '.join(_TERMS[term] for term in terms)} (examples {', '.join(ids[:NAMED])}"
            f"{more}; metrics.jsonl has them all)."
        )
    return notes


_TERMS = {"ce": "cross-entropy", "cal": "the term", "gradient": "the gradient"}


def _diverged(method: Method) -> list[str]:
    losses = [line["ce"] for line in method.logged("finetune") if line.get("ce") is not None]
    tenth = max(1, len(losses) // 10)
    if len(losses) >= 10:
        first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
        if last > max(FAR_TIMES * first, first + FAR_NATS):
            return [
                f"{short_name(method.key)} diverged: the cross-entropy of its updates rose from"
                f" {first:.2f} to {last:.2f} nats; lower training.learning_rate."
            ]
    return []


def _below_guessing(method: Method, task: str, best: bool) -> list[str]:
    """best: the weights are those of the validation with the lowest NLL."""
    guess = method.predictions[task].guess_nll
    nll = [line["nll"] for line in method.logged("validation")]
    if guess is None or len(nll) < FEWEST_VALIDATIONS or (best and min(nll[1:]) <= guess):
        return []
    above = _last_above(nll, guess)
    if above < len(nll) / 2:
        return []
    earlier = "" if best else ", train for fewer epochs, or keep the best (--training.keep best)"
    return [
        f"{short_name(method.key)}: in the last {above} of {len(nll)} validations the NLL was"
        f" above that of guessing ({guess:.2f} nats; at the end {nll[-1]:.2f}), so its"
        f" confidences say less than none would: lower training.learning_rate{earlier}."
    ]


def _last_above(values: Sequence[float], limit: float) -> int:
    """The number of newest values in a row that are above `limit`."""
    below = [i for i, value in enumerate(values) if value <= limit]
    return len(values) - (below[-1] + 1 if below else 0)


def _one_class(method: Method) -> list[str]:
    _, gate, _ = split_key(method.key)
    made = GATES.make(gate) if gate else None
    if made is None or not (made.needs_nll or made.labelled_by == "start"):
        return []  # it never looks at the threshold
    fits = method.logged("refit")
    notes: dict[str, int] = {}
    for line in fits:
        if line.get("note"):
            notes[line["note"]] = notes.get(line["note"], 0) + 1
    return [
        f"{short_name(method.key)}: at {times} of {count(len(fits), 'fit')} of the threshold"
        f" {note}."
        for note, times in notes.items()
    ]
