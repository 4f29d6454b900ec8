"""Every method of a suite by what it learnt and by what it does elsewhere: three populations.

*Taught*: the facts that were trained on, asked in other words. *Unseen*: the test questions.
*Retained*: those of them that the start knows by evidence that is not used for scoring: right
answers in another form (`known_by`), or the world's record. Whatever is fitted or chosen here uses
two other populations with equal weight, `taught_fit` and `unseen_fit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cogcalib_jax.calibration import (
    CALIBRATORS,
    Calibrator,
    TemperatureScaler,
    equal_weights,
)
from cogcalib_jax.calibration.scaling import softmax
from cogcalib_jax.cli.method_run import read_known
from cogcalib_jax.cli.questions import TAUGHT_FIT, UNSEEN_FIT
from cogcalib_jax.cli.references import PATH
from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics import brier_per_row, ece, nll_per_row, top_label
from cogcalib_jax.report.load_run import RunResults, task_file
from cogcalib_jax.report.text import REFERENCES, is_gated, is_tempered, short_name, tempered
from cogcalib_jax.studies.suite_results import Condition, Study

TAUGHT, UNSEEN, RETAINED = "taught", "unseen", "retained"
POPULATIONS = (TAUGHT, UNSEEN, RETAINED)
TAUGHT_GROUP = "taught_form_b"
NUMBERS = ("accuracy", "nll", "ece", "brier", "confidence")
RAW, TEMPERED, OWN = "raw", "one temperature", "as fitted"
START, SFT = "start", "sft"
MIXED = (0.2, 0.4, 0.6, 0.8)
"""weights of sft in the linear mixtures that are drawn"""
LINEAR = "Linear mixture of start and SFT"
GRID = tuple(np.linspace(0, 1, 21))
"""weights of sft among which that of the row `LINEAR` is chosen"""
MIXTURES = {
    f"{LINEAR}, a temperature each": "linear_mixture",
    "Logit mixture of start and SFT": "mixture",
    "SFT + DACA": "daca",
}
"""calibrators of sft that take the start's scores, too"""
NOT_A_PATH = ("compare", "also", "known_by", "training.probe_rows", "evaluation.resamples")
"""settings that change no model"""
USES_CALIBRATION = ("interpolation",)
"""rows that choose something on calibration questions"""


@dataclass(frozen=True)
class Answered:
    """One model's scores of one population."""

    scores: np.ndarray
    """[n, k] float64: log-probabilities up to a constant a row; absent options are -inf"""
    answers: np.ndarray
    """[n] index of the right option"""
    known: np.ndarray
    """[n] bool: whether the start knows the answer"""


Answers = Mapping[str, Answered]
"""population, `taught_fit` or `unseen_fit` -> scores; what a task lacks is not there"""


@dataclass
class Row:
    """One model of the frontier, over its seeds."""

    name: str
    labels: str
    """the splits whose labels it uses"""
    key: str = ""
    """the method, or the calibrator"""
    seeds: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    """seed -> population -> numbers"""
    path: tuple[str, float] | None = None
    """the path that it is a point of, and its place on it; None: a row of the table"""
    how: str = RAW

    def values(self, population: str, number: str) -> list[float]:
        """Return one number of every seed that has the population."""
        return [one[population][number] for one in self.seeds.values() if population in one]

    @property
    def score(self) -> list[float]:
        """The NLL averaged over taught and unseen, of every seed that has both."""
        return [
            (one[TAUGHT]["nll"] + one[UNSEEN]["nll"]) / 2
            for one in self.seeds.values()
            if TAUGHT in one
        ]


def read_answers(run: Path, method: str, task: str) -> Answers:
    """Return the scores that the `predictions/` of a method of a run hold, by population.

    Retained are the unseen questions that the start knows: by `known_by`, else as the rows say.

    Raises:
        UserError: no predictions of the test questions.
    """
    files = {
        UNSEEN: task,
        TAUGHT: f"{task}:{TAUGHT_GROUP}",
        TAUGHT_FIT: f"{task}:{TAUGHT_FIT}",
        UNSEEN_FIT: f"{task}:{UNSEEN_FIT}",
    }
    found = {}
    for name, entry in files.items():
        file = run / method / "predictions" / task_file(entry)
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            found[name] = _answered(rows, read_known(run, "test") if name == UNSEEN else {})
    if UNSEEN not in found:
        raise UserError(f"{run / method}: has no predictions of {task}; run the suite again")
    known = found[UNSEEN].known
    if known.any():
        all_of = found[UNSEEN]
        found[RETAINED] = Answered(all_of.scores[known], all_of.answers[known], known[known])
    return found


def _answered(rows: Sequence[Mapping[str, Any]], right: Mapping[str, bool]) -> Answered:
    """right: id -> whether the start is right in another form; {}: the rows say what is known."""
    width = max(len(row["option_scores"]) for row in rows)
    scores = np.full((len(rows), width), -np.inf)
    for i, row in enumerate(rows):
        scores[i, : len(row["option_scores"])] = row["option_scores"]
    answers = np.array([row["answer"] for row in rows])
    stated = [bool((row.get("extra") or {}).get("known")) for row in rows]
    known = [right.get(row["id"], False) for row in rows] if right else stated
    return Answered(scores, answers, np.array(known))


def numbers(probs: np.ndarray, of: Answered, bins: int) -> dict[str, float]:
    """Return accuracy, NLL, ECE, Brier and mean confidence of probabilities `[n, k]`, and n."""
    mask = np.isfinite(of.scores)
    _, confidence, correct = top_label(probs, mask, of.answers)
    return {
        "n": len(of.answers),
        "accuracy": float(correct.mean()),
        "nll": float(nll_per_row(probs, mask, of.answers).mean()),
        "ece": ece(confidence, correct, bins=bins),
        "brier": float(brier_per_row(probs, mask, of.answers).mean()),
        "confidence": float(confidence.mean()),
    }


def fitted(calibrator: Calibrator, answers: Answers, start: Answers | None) -> Calibrator | None:
    """Fit on the populations that are there for it, each with equal weight; None if none is."""
    names = [name for name in (UNSEEN_FIT, TAUGHT_FIT) if name in answers]
    if UNSEEN_FIT not in names:
        return None
    parts = [answers[name] for name in names]
    starts = None
    if calibrator.needs_start:
        assert start is not None  # callers mix only with a start
        starts = np.concatenate([start[name].scores for name in names])
    scores = np.concatenate([one.scores for one in parts])
    return calibrator.fit(
        scores,
        np.concatenate([one.answers for one in parts]),
        mask=np.isfinite(scores),
        start_scores=starts,
        weights=equal_weights([len(one.answers) for one in parts]),
    )


def with_calibrator(
    calibrator: Calibrator | None, answers: Answers, start: Answers | None, bins: int
) -> dict[str, dict[str, float]]:
    """Return population -> numbers of the calibrated probabilities; None: a softmax."""
    found = {}
    for name in POPULATIONS:
        if name not in answers:
            continue
        one = answers[name]
        if calibrator is None:
            probs = softmax(one.scores)
        else:
            first = None if start is None else start[name].scores
            mask = np.isfinite(one.scores)
            probs = calibrator.transform(one.scores, mask=mask, start_scores=first)
        found[name] = numbers(probs, one, bins)
    return found


def mixed(start: Answers, end: Answers, weight: float) -> Answers:
    """Return log((1 - weight) p_start + weight p_end) of every population."""
    found = {}
    for name, one in end.items():
        probs = (1 - weight) * softmax(start[name].scores) + weight * softmax(one.scores)
        with np.errstate(divide="ignore"):
            scores = np.where(np.isfinite(one.scores), np.log(probs), -np.inf)
        found[name] = Answered(scores, one.answers, one.known)
    return found


def frontier_rows(study: Study) -> list[Row]:
    """Return the rows of the table and the points of paths, each raw and with one temperature."""
    rows: dict[tuple[str, str], Row] = {}
    for condition in study.conditions:
        for seed, run in condition.runs.items():
            for row, found in _rows(study, condition, seed, run):
                rows.setdefault((row.name, row.how), row).seeds[seed] = found
    return list(rows.values())


Found = dict[str, dict[str, float]]
"""population -> numbers"""


def _rows(
    study: Study, condition: Condition, seed: int, run: RunResults
) -> Iterator[tuple[Row, Found]]:
    """Yield every row that one run has a part in, with its numbers there."""
    task, first = run.tasks[0], condition is study.conditions[0]
    answers = {
        m.key: read_answers(run.folder, m.key, task)
        for m in run.methods
        if not is_tempered(m.key) and m.key not in REFERENCES
    }
    changed = _changed(study, condition)
    if not first:  # they are rows of the first condition, or of no interest
        shown = {key: a for key, a in answers.items() if key != START and not _is_best(key)}
    else:
        shown = answers
    point = _point(changed)
    for key, found in shown.items():
        name = short_name(key)
        if changed:
            name = condition.name if len(shown) == 1 else f"{name}, {condition.name}"
        path = None
        if point is not None:
            path = (f"{short_name(key)}: {point[0]}", point[1])
            yield from _first_point(study, seed, key, point[0])
        made = Row(name, labels_of(run, key), key=key, path=path)
        temperature = _stored_temperature(run, key)
        yield from _raw_and_tempered(made, found, run.bins, temperature)
    if first and START in answers and SFT in answers:
        yield from _between(run, answers[START], answers[SFT])


def _first_point(study: Study, seed: int, key: str, path: str) -> Iterator[tuple[Row, Found]]:
    """Yield the first condition's point on the path of a setting: its own value of it."""
    run = study.conditions[0].runs.get(seed)
    if run is None or key not in [m.key for m in run.methods]:
        return
    config = yaml.safe_load(run.configs.get(f"{key}/config.yaml", run.configs["config.yaml"]))
    for part in path.split("."):
        config = (config or {}).get(part)
    if isinstance(config, int | float):
        name = f"{short_name(key)}, {path.rpartition('.')[2]} {config:g}"
        row = Row(name, labels_of(run, key), path=(f"{short_name(key)}: {path}", float(config)))
        found = read_answers(run.folder, key, run.tasks[0])
        yield from _raw_and_tempered(row, found, run.bins, _stored_temperature(run, key))


def _between(run: RunResults, start: Answers, end: Answers) -> Iterator[tuple[Row, Found]]:
    """Yield what lies between the start and sft: mixtures, weights, calibrators of both."""
    labels = labels_of(run, SFT)
    tried = sorted((run.folder / "interpolation" / PATH).glob("*"))
    weights = {
        float(place.name): read_answers(
            run.folder, f"interpolation/{PATH}/{place.name}", run.tasks[0]
        )
        for place in tried
    }
    paths = {"Linear mixture": {weight: mixed(start, end, weight) for weight in MIXED}}
    paths |= {"Interpolation": weights} if weights else {}
    for name, points in paths.items():
        for at, found in sorted(({0.0: start, 1.0: end} | points).items()):
            row = Row(f"{name}, {at:g}", labels, path=(name, at))
            yield from _raw_and_tempered(row, found, run.bins)
    weighed = {w: loss for w in GRID if (loss := _fit_nll(mixed(start, end, w))) is not None}
    if weighed:
        chosen = min(weighed, key=lambda w: weighed[w])
        row = Row(LINEAR, _with_calibration(labels), key="linear")
        yield from _raw_and_tempered(row, mixed(start, end, chosen), run.bins)
    for name, calibrator in MIXTURES.items():
        made = fitted(CALIBRATORS.make(calibrator), end, start)
        if made is not None:
            used = _with_calibration(labels) if made.needs_labels else labels
            row = Row(name, used, key=calibrator, how=OWN)
            yield row, with_calibrator(made, end, start, run.bins)


def _fit_nll(answers: Answers) -> float | None:
    """Return the NLL on what is fitted on, each population with equal weight; None if none is."""
    parts = [answers[name] for name in (UNSEEN_FIT, TAUGHT_FIT) if name in answers]
    losses = [nll_per_row(softmax(p.scores), np.isfinite(p.scores), p.answers) for p in parts]
    return float(np.mean([loss.mean() for loss in losses])) if losses else None


def _raw_and_tempered(
    row: Row, answers: Answers, bins: int, stored: Calibrator | None = None
) -> Iterator[tuple[Row, Found]]:
    """Yield a row as it is, and with the temperature that is fitted here, or else was stored."""
    yield row, with_calibrator(None, answers, None, bins)
    temperature = fitted(TemperatureScaler(), answers, None) or stored
    if temperature is not None:
        labels = _with_calibration(row.labels)
        other = replace(row, labels=labels, how=TEMPERED, seeds={})
        yield other, with_calibrator(temperature, answers, None, bins)


def _stored_temperature(run: RunResults, key: str) -> Calibrator | None:
    """Return the temperature of a method's adapter, which was fitted on calibration alone."""
    for method in run.methods:
        if method.key == tempered(key):
            value = method.metrics[run.tasks[0]]["temperature"]
            stored = {"calibrator": "temperature", "temperature_": value}
            return Calibrator.from_json(stored | {"converged_": True, "n_rows_": 1})
    return None


def _is_best(key: str) -> bool:
    return key.endswith("_best_epoch")


def labels_of(run: RunResults, key: str) -> str:
    """Return the splits whose labels a method of a run uses, in words."""
    config = yaml.safe_load(run.configs["config.yaml"])
    used = ["style"] if (config.get("training") or {}).get("style_steps") else []
    if key != START:
        used.append("train")
    gated, anchor = is_gated(key.removesuffix("_best_epoch")), config.get("anchor") or {}
    held = key != START and (anchor.get("methods") is None or key in anchor["methods"])
    # The start's own temperature is fitted to the calibration questions.
    if gated or (held and anchor.get("tempered")) or key in USES_CALIBRATION:
        used.append("calibration")
    if _is_best(key):
        used.append("validation")
    return ", ".join(used)


def _with_calibration(labels: str) -> str:
    """Return `labels` with the calibration split, in the usual order."""
    order = ("style", "train", "calibration", "validation")
    return ", ".join(name for name in order if name in labels or name == "calibration")


def _changed(study: Study, condition: Condition) -> list[tuple[str, str]]:
    """Return (setting, value) of what differs from the first condition, methods aside."""
    first, here = (
        dict(s.partition("=")[::2] for s in c.settings) for c in (study.conditions[0], condition)
    )
    return [(k, v) for k, v in here.items() if k not in NOT_A_PATH and first.get(k) != v]


def _point(changed: Sequence[tuple[str, str]]) -> tuple[str, float] | None:
    """Return setting and value of a condition that differs from the first by one number."""
    try:
        ((path, value),) = changed
        return path, float(value)
    except ValueError:
        return None


def nondominated(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other is better than in both, both being better if lower."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best
