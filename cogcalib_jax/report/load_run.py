"""The files of a finished run: its metrics, predictions, logged steps and configs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cogcalib_jax.data.example import clusters_of_predictions
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import reason_of, refusing_damage
from cogcalib_jax.inference.posthoc import FittedTemperature, stored_temperature
from cogcalib_jax.method.config import method_label
from cogcalib_jax.metrics import brier_per_row
from cogcalib_jax.report.text import tempered

# What is looked up in lines of metrics.jsonl, by their phase, and of dynamics.jsonl.
STEP_FIELDS = {
    "finetune": ("known_fraction",),
    "refit": ("threshold",),
    "validation": ("nll",),
    "nonfinite": ("during", "examples", "terms"),
}
# Folder in a run of one method with its numbers at the fitted temperature.
TEMPERED = "temperature"
LONGEST = 600
"""characters of a question"""
DYNAMICS_FIELDS = ("data", "group", "accuracy", "confidence")


@dataclass(frozen=True)
class Predictions:
    """The answers of a method to the `n` questions of one task, in file order."""

    ids: tuple[str, ...]
    correct: np.ndarray
    """[n] bool: whether the predicted option is the right one, or the answer matches exactly"""
    confidence: np.ndarray
    """[n] float64: probability of the predicted option among the options, or of the answer"""
    nll: np.ndarray
    """[n] float64: nats, -log probability of the right option among the options, or of whether the
    answer is right"""
    brier: np.ndarray
    """[n] float64: multiclass Brier score in the sum form; of answers the binary one"""
    guess_nll: float | None = None
    """nats, of giving every option of a question the same probability; None of answers"""
    clusters: np.ndarray | None = None
    """[n] which question each row asks (`data.example`); None: each its own"""
    chance: float = 0.0
    """accuracy of guessing among the options; 0 of answers"""
    texts: tuple[str, ...] = ()
    """[n] the questions"""
    given: tuple[str, ...] = ()
    """[n] the answers given"""
    expected: tuple[str, ...] = ()
    """[n] the right answers"""

    @property
    def questions(self) -> int:
        """The number of different questions."""
        return len(self.ids) if self.clusters is None else len(np.unique(self.clusters))


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    key: str
    """folder name in a comparison: sft, sft_temperature, cols, ..."""
    metrics: dict[str, dict[str, Any]]
    """task -> the numbers of eval.json"""
    predictions: dict[str, Predictions]
    """task -> predictions"""
    steps: tuple[dict[str, Any], ...]
    """lines of metrics.jsonl; empty for rows derived from another run"""
    dynamics: tuple[dict[str, Any], ...]
    """lines of dynamics.jsonl; empty for rows derived from another run"""
    config: str
    """file, relative to the run's folder, with the config that made it"""
    command: str | None
    """that made it, None if none was recorded"""
    temperature: FittedTemperature | None = None
    """as its adapter stores it; None of a row without an adapter"""

    def logged(self, phase: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl of one phase."""
        return [line for line in self.steps if line.get("phase") == phase]


@dataclass(frozen=True)
class RunResults:
    """The results of a comparison of methods; a single run is a comparison of one."""

    folder: Path
    methods: tuple[Method, ...]
    tasks: tuple[str, ...]
    """in the order they were evaluated; the first is the one that was trained on"""
    style_end: int | None
    """last step of the style phase, None without one"""
    configs: dict[str, str]
    """file, relative to `folder` -> resolved config as the run wrote it"""
    bins: int
    """equal-width bins of the ECE in the results"""
    provenance: dict[str, Any]


def read_run(folder: Path) -> RunResults:
    """Read a comparison folder (it holds comparison.json) or a single run (eval.json).

    Raises UserError when the folder is neither, when a file is missing or broken, or when the
    methods of a comparison did not answer the same questions.
    """
    run = _read(folder, None)
    _check_same_questions(folder, run.methods)
    return run


def read_evaluation(folder: Path, name: str) -> RunResults:
    """Read the folder of eval.py, whose models need not have been asked the same texts; `name` is
    that of a single model. Raises UserError as `read_run` does."""
    return _read(folder, name)


def _read(folder: Path, name: str | None) -> RunResults:
    """`name`: of a single model; None: that of its method."""
    if (folder / "comparison.json").is_file():
        table = _read_json(folder / "comparison.json")
        require_plain_names(folder / "comparison.json", [*table, *chain(*table.values())])
        methods = tuple(_method(key, folder, key, tasks) for key, tasks in table.items())
    elif (folder / "eval.json").is_file():
        tasks = _tasks(_read_json(folder / "eval.json"))
        require_plain_names(folder / "eval.json", tasks)
        key = name or _single_key(folder)
        methods = (_method(key, folder, "", tasks),)
        if (folder / TEMPERED / "eval.json").is_file():
            scaled = _tasks(_read_json(folder / TEMPERED / "eval.json"))
            require_plain_names(folder / TEMPERED / "eval.json", scaled)
            methods += (_method(tempered(key), folder, TEMPERED, scaled),)
    else:
        raise UserError(
            f"{folder}: no comparison.json and no eval.json, so there is nothing to report; give"
            " the folder of a finished run"
        )
    if not methods or not methods[0].metrics:
        raise UserError(f"{folder}: its results name no method or no task; evaluate the run again")
    configs = _configs(folder, methods)
    return RunResults(
        folder=folder,
        methods=methods,
        tasks=tuple(methods[0].metrics),
        style_end=_style_end(methods),
        configs=configs,
        bins=int(_setting(configs, "evaluation", "bins")),
        provenance=_provenance(folder, *(folder / m.key for m in methods)),
    )


def require_plain_names(file: Path, names: Iterable[str]) -> None:
    """Refuse names of methods and tasks that would lead to files outside the folder of `file`."""
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise UserError(
                f"{file}: names {name!r}, whose files would lie outside its folder; evaluate again"
            )


def task_file(task: str) -> str:
    """Return the file name of a task's predictions."""
    return f"{task}.jsonl"


def _tasks(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: value for name, value in results.items() if name != "provenance"}


def _method(key: str, run: Path, place: str, metrics: dict[str, dict[str, Any]]) -> Method:
    """`place`: the method's folder in that of the run."""
    folder = run / place
    predictions = {t: read_predictions(folder / "predictions" / task_file(t)) for t in metrics}
    return Method(
        key=key,
        # Runs of earlier releases did not write down what guessing gives.
        metrics={t: {"chance": predictions[t].chance} | numbers for t, numbers in metrics.items()},
        predictions=predictions,
        steps=_journal(folder / "metrics.jsonl", lambda line: STEP_FIELDS.get(line["phase"], ())),
        dynamics=_journal(folder / "dynamics.jsonl", lambda line: DYNAMICS_FIELDS),
        config=_config_of(run, place),
        command=_provenance(folder).get("command"),
        temperature=stored_temperature(folder / "adapter"),
    )


def read_predictions(path: Path) -> Predictions:
    """Read the predictions of one task; raises UserError if the file is missing or broken."""
    remedy = (
        f"remove {path.parents[1] / 'eval.json'} and resume the run (--resume), which scores its"
        " questions again"
    )
    rows = _read_lines(path, remedy)
    if not rows:
        raise UserError(f"{path}: missing or empty; {remedy}")
    try:
        found = _of_answers(rows) if "exact_match" in rows[0] else _of_options(rows)
        return replace(found, clusters=clusters_of_predictions(rows))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a row is damaged ({reason_of(error)}); {remedy}") from error


def _of_options(rows: Sequence[dict[str, Any]]) -> Predictions:
    options = np.array([len(row["option_probs"]) for row in rows])
    probs = np.zeros((len(rows), options.max()))
    for i, row in enumerate(rows):
        probs[i, : options[i]] = row["option_probs"]
    answers = np.array([row["answer"] for row in rows])
    names = [row.get("completions") or list(map(str, range(len(probs[0])))) for row in rows]
    return Predictions(
        ids=tuple(row["id"] for row in rows),
        correct=np.array([row["prediction"] == row["answer"] for row in rows]),
        confidence=np.array([row["confidence"] for row in rows], float),
        nll=np.array([row["nll"] for row in rows], float),
        brier=brier_per_row(probs, options, answers),
        guess_nll=float(np.log(options).mean()),
        chance=float((1 / options).mean()),
        texts=tuple(map(_question, rows, names)),
        given=tuple(k[row["prediction"]].strip() for row, k in zip(rows, names, strict=True)),
        expected=tuple(k[row["answer"]].strip() for row, k in zip(rows, names, strict=True)),
    )


def _question(row: dict[str, Any], names: Sequence[str]) -> str:
    """The question; of letters the end of the prompt, which alone says what they stand for."""
    prompt = str(row.get("prompt") or "").strip()
    if all(len(name.strip()) < 2 for name in names) and prompt:
        return prompt if len(prompt) <= LONGEST else f"... {prompt[4 - LONGEST :]}"
    return str(row.get("question") or prompt).strip()


def _of_answers(rows: Sequence[dict[str, Any]]) -> Predictions:
    """Score open answers as binary forecasts that the answer matches exactly."""
    confidence = np.array([row["confidence"] for row in rows], float)
    correct = np.array([row["exact_match"] for row in rows], bool)
    of_outcome = np.where(correct, confidence, 1 - confidence)
    return Predictions(
        ids=tuple(row["id"] for row in rows),
        correct=correct,
        confidence=confidence,
        nll=-np.log(np.maximum(of_outcome, np.finfo(float).tiny)),
        brier=(confidence - correct) ** 2,
        texts=tuple(str(row.get("question") or row.get("prompt") or "").strip() for row in rows),
        given=tuple(str(row.get("text") or "").strip() for row in rows),
        expected=tuple("; ".join(map(str, row.get("answers") or ())) for row in rows),
    )


def _check_same_questions(folder: Path, methods: Sequence[Method]) -> None:
    """Check that row i is the same question for all methods, as paired differences need."""
    first = methods[0]
    for method in methods[1:]:
        if list(method.metrics) != list(first.metrics):
            raise UserError(
                f"{folder}/comparison.json: {method.key} and {first.key} were evaluated on"
                " different tasks; evaluate both on the same ones"
            )
        for task, predictions in method.predictions.items():
            if predictions.ids != first.predictions[task].ids:
                raise UserError(
                    f"{folder}: {method.key} and {first.key} answered different questions of"
                    f" {task}; evaluate both on the same split"
                )


def _style_end(methods: Iterable[Method]) -> int | None:
    """Return the last step of style adaptation, with which every log of a comparison begins."""
    steps = [line["step"] for m in methods for line in m.steps if line.get("phase") == "style"]
    return max(steps, default=None)


def _configs(folder: Path, methods: Iterable[Method]) -> dict[str, str]:
    paths = [folder / "config.yaml", *(folder / m.key / "config.yaml" for m in methods)]
    found = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in paths
        if path.is_file()
    }
    if not found:
        raise UserError(
            f"{folder}: no config.yaml, so this is no folder of a run; give the folder of a run"
        )
    return found


def _setting(configs: dict[str, str], section: str, field: str) -> Any:
    """A field of the first config that has it; a resolved config holds every field."""
    for text in configs.values():
        value = (yaml.safe_load(text).get(section) or {}).get(field)
        if value is not None:
            return value
    raise UserError(f"{', '.join(configs)}: no {section}.{field}, so no config of a finished run")


def weights_of(run: RunResults) -> dict[str, float]:
    """Return method -> weight of its term, for methods with a config of their own."""
    own = {m.key: run.configs[m.config] for m in run.methods if m.config == f"{m.key}/config.yaml"}
    return {key: _setting({key: text}, "method", "weight") for key, text in own.items()}


def anchor_terms(run: RunResults) -> dict[str, str]:
    """Return method -> the term that held it on questions without answers, for methods of such."""
    return {
        m.key: _setting({m.config: run.configs[m.config]}, "anchor", "term")
        for m in run.methods
        if any("anchor" in line for line in m.logged("finetune"))
    }


def keeps_best(run: RunResults, method: Method) -> bool:
    """Return whether the weights are those of the best validation epoch, not of the last update."""
    return _setting({method.config: run.configs[method.config]}, "training", "keep") == "best"


def _config_of(run: Path, place: str) -> str:
    """Return a row's config: its own, else that of the method it derives from, else the run's."""
    for ending in ("", "_temperature", "_best_epoch"):
        place = place.removesuffix(ending)
        own = Path(place) / "config.yaml"
        if (run / own).is_file():
            return str(own)
    return "config.yaml"


def _provenance(*folders: Path) -> dict[str, Any]:
    """The provenance in the first eval.json of these folders."""
    for folder in folders:
        if (folder / "eval.json").is_file():
            return _read_json(folder / "eval.json").get("provenance", {})
    return {}


def _single_key(folder: Path) -> str:
    configs = _configs(folder, ())
    return method_label(_setting(configs, "method", "term"), _setting(configs, "method", "gate"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); evaluate the run again"
        ) from error


def _journal(
    path: Path, fields: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[dict[str, Any], ...]:
    """Lines about training; `fields` says what one must have beside a step."""
    remedy = "put the file back from a copy, or resume the run (--resume), which writes it again"
    lines = _read_lines(path, remedy)
    for number, line in enumerate(lines, start=1):
        with refusing_damage(f"{path}:{number}", remedy):
            for field in ("step", *fields(line)):
                line[field]
    return lines


def _read_lines(path: Path, remedy: str) -> tuple[dict[str, Any], ...]:
    """The JSON objects of a file, one a line; none if it does not exist."""
    if not path.is_file():
        return ()
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            with refusing_damage(f"{path}:{number}", remedy):
                rows.append(dict(json.loads(line.decode()).items()))
    return tuple(rows)
