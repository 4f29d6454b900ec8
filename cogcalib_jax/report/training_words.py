"""Warnings about training, from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cogcalib_jax.method.config import GATES
from cogcalib_jax.report.load_run import Method, Run, keeps_best
from cogcalib_jax.report.names import short_name, split_key
from cogcalib_jax.report.text import count

# Cross-entropy of the last tenth of the logged updates is this many times that of the first, and
# this much above it (nats): it only rises like that if training diverges.
FAR_TIMES, FAR_NATS = 2.0, 0.5
# Fewer validations say nothing of "for long".
FEWEST_VALIDATIONS = 4
NAMED = 5


def training_notes(run: Run) -> tuple[str, ...]:
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
