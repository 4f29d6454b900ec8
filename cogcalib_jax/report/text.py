"""Names and looks of methods, the same in every table and figure; numbers and figures in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogcalib_jax.baselines.registry import split_folder
from cogcalib_jax.method.config import GATES, TERMS, split_label
from cogcalib_jax.registry import Registry, split_spec

# The longest first: the ending of a key is looked up in this order.
DERIVED = {
    "best_epoch_temperature": ", best epoch + temperature",
    "temperature": " + temperature",
    "best_epoch": ", best epoch",
}
# Every method must beat these; they are not trained.
BASE, COMMONEST = "base", "commonest_answer"
REFERENCES = {
    BASE: ("Base", "the model as it was given, before style adaptation"),
    COMMONEST: (
        "Commonest answer",
        "the frequencies of right answers among the fine-tuning rows",
    ),
}

# Okabe and Ito's palette, told apart with the common forms of colour blindness. Warm: nothing
# regularised. Cool: a term, pale on all data and strong on known data. Line styles repeat it.
_FIXED = {
    BASE: ("#9C9C9C", "-"),
    COMMONEST: ("#C9C9C9", ":"),
    "sft": ("#D55E00", "-"),
    "sft_best_epoch": ("#E69F00", "--"),
    "sft_temperature": ("#CC79A7", "-."),
    "ls": ("#56B4E9", "--"),
    "cols": ("#0072B2", "-"),
    "mbls": ("#7FCDB4", "--"),
    "combls": ("#009E73", "-"),
    "ecp": ("#A9A9A9", "--"),
    "coecp": ("#333333", "-"),
    "mc_dropout": ("#A6761D", ":"),
    "ensemble": ("#6A3D9A", ":"),
    "laplace_lora": ("#8B1A1A", "-."),
    "blob": ("#1B3A6B", ":"),
    "tfb": ("#2E8B8B", "-."),
    "ivon": ("#B5446E", ":"),
    "scalabl": ("#4C6FA5", "-."),
    "ib_edl": ("#8C6D31", "--"),
    "start": ("#6B6B6B", "--"),
    "interpolation": ("#117A65", "-."),
}
_SPARE = ("#637939", "#843C39", "#17A2A2", "#B5A300", "#7B8FA6", "#C2185B", "#5C4FC4")


@dataclass(frozen=True)
class Look:
    """The colour and line of a method in plots."""

    color: str
    line: str

    @property
    def style(self) -> dict[str, Any]:
        """Both, as Matplotlib's keywords."""
        return {"color": self.color, "linestyle": self.line}


def split_key(key: str) -> tuple[str, str, str]:
    """Return the (term, gate, derivation) of a method's folder name, as specs such as
    "mbls(margin=5)"; all empty for a word that names no method."""
    for derivation in DERIVED:
        if key.endswith(f"_{derivation}"):
            term, gate, _ = split_key(key.removesuffix(f"_{derivation}"))
            return term, gate, derivation if term else ""
    term, gate = split_label(key) or ("", "")
    return term, gate, ""


def term_label(term: str) -> str:
    """Return the name of a term in tables, with its settings: "MbLS", "Focal (gamma 3)"."""
    return _labelled(TERMS, term)


def gate_label(gate: str) -> str:
    """Return what a gate applies the term to: "known data"."""
    return _labelled(GATES, gate)


def _labelled(registry: Registry, spec: str) -> str:
    name, settings = split_spec(spec)
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    return registry[name].label + (f" ({words})" if words else "")


def tempered(key: str) -> str:
    """Return the key of the row that has the scores of `key` with its fitted temperature."""
    return f"{key}_temperature"


def is_tempered(key: str) -> bool:
    """Return whether the row has the scores of another one with a temperature."""
    return split_key(key)[2].endswith("temperature")


def best_epoch_of(key: str) -> str:
    """Return the key of the row that stopped `key` at its best validation epoch."""
    return f"{key}_best_epoch"


def is_gated(key: str) -> bool:
    """Return whether the method applies its term to known data alone, as CogCalib does (Wang et al.
    2025), and is nothing derived from such a run."""
    _, gate, derivation = split_key(key)
    return gate == "adaptive" and not derivation


def is_sampled(key: str) -> bool:
    """Return whether the row is a baseline: made from plain fine-tuning, with answers of its
    own."""
    return split_folder(key) is not None


def costs_more(key: str) -> bool:
    """Return whether the row is a baseline with several passes for an answer."""
    found = split_folder(key)
    return found is not None and not found[0].cls.one_pass


def short_name(key: str) -> str:
    """Return the name in tables and sentences: "CoLS", "LS on all data", "SFT + temperature"."""
    if key in REFERENCES:
        return REFERENCES[key][0]
    if (found := split_folder(key)) is not None:
        entry, settings = found
        return entry.label + (f" ({settings.replace('=', ' ')})" if settings else "")
    term, gate, derivation = split_key(key)
    if not term:
        return key
    if term == "none":
        name = "SFT"
    elif gate == "adaptive" and "cogcalib" in TERMS[split_spec(term)[0]].facts:
        name = f"Co{term_label(term)}"
    else:
        name = f"{term_label(term)} on {gate_label(gate)}"
    return name + DERIVED.get(derivation, "")


def long_name(key: str) -> str:
    """Return the short name, with a description and source if it needs them."""
    if key in REFERENCES:
        return f"{short_name(key)} ({REFERENCES[key][1]})"
    if (found := split_folder(key)) is not None:
        return f"{short_name(key)} ({found[0].facts['what']})"
    facts = TERMS[split_spec(split_key(key)[0])[0]].facts if is_gated(key) else {}
    if "cogcalib" in facts:
        return f"{short_name(key)} ({facts['cogcalib']} on known data, Wang et al. 2025)"
    return short_name(key).replace(DERIVED["best_epoch"], ", best validation epoch")


def credits(keys: Iterable[str]) -> list[str]:
    """Return the long names of those rows whose short name needs more words."""
    return [long_name(key) for key in keys if long_name(key).startswith(f"{short_name(key)} (")]


def looks(keys: Iterable[str]) -> dict[str, Look]:
    """Return a look per method: usual ones have theirs, the rest take spare colours in order."""
    chosen: dict[str, Look] = {}
    spare = 0
    for key in keys:
        if key in _FIXED:
            chosen[key] = Look(*_FIXED[key])
        else:
            chosen[key] = Look(
                _SPARE[spare % len(_SPARE)], ("-", "--", "-.", ":")[spare // len(_SPARE) % 4]
            )
            spare += 1
    return chosen


SCORED_BY = {
    "mean": "their mean log-probability per token",
    "sum": "their log-probability summed over tokens",
    "chars": "their log-probability per character",
    "pmi": "their log-probability minus the one without the question (pmi)",
}
"""The rules of `option_score`, as tables name them."""


def scoring_notes(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on each rule by which options were scored.

    results: numbers of eval.json. Options of one token need no words by mean and sum, which agree.
    """
    rules = [
        metrics["option_score"]
        for metrics in results
        if metrics.get("option_score") in ("chars", "pmi")
        or not metrics.get("single_token_options", True)
    ]
    return [f"Options are scored by {SCORED_BY[rule]}." for rule in dict.fromkeys(rules)]


TEXT_WIDTH = 110
"""Columns of a paragraph on a terminal."""


def percent(value: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 question", "1,520 questions"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def questions(metrics: Mapping[str, Any]) -> int:
    """Return the number of different questions behind the numbers of a task in eval.json."""
    return metrics.get("n_questions", metrics["n"])


def is_at_chance(metrics: Mapping[str, Any]) -> bool:
    """Return whether the 95 % interval of the accuracy holds that of guessing, or lies below.

    metrics: the numbers of a task in eval.json. Guessing an open answer is never right.
    """
    return metrics["ci95"]["accuracy"][0] <= metrics.get("chance", 0.0)


def reliability_text(results: Mapping[str, Mapping[str, Any]], task: str) -> str:
    """Describe a reliability diagram; `results`: method -> numbers of the task in eval.json."""
    parts = []
    for key, m in results.items():
        floor = m["ece_noise_floor"]
        sure = "surer than right" if m["confidence"] > m["accuracy"] else "no surer than right"
        sure = "at chance" if is_at_chance(m) else f"{sure} on average"
        parts.append(
            f"{short_name(key)}: mean confidence {percent(m['confidence'])}, accuracy"
            f" {percent(m['accuracy'])}, so {sure}; ECE {m['ece']:.3f}, noise floor"
            f" {floor['mean']:.3f}, 95th percentile {floor['p95']:.3f}."
        )
    n = next(iter(results.values()))["n"]
    opening = f"Reliability diagrams, accuracy against confidence, on {count(n, 'question')} of"
    return " ".join([f"{opening} {task}.", *parts])


def histogram_text(
    means: Mapping[str, tuple[float | None, float | None]],
    results: Mapping[str, Mapping[str, Any]],
    task: str,
) -> str:
    """Describe histograms; `means`: method -> mean confidence of right and of wrong answers."""
    parts = []
    for key, (right, wrong) in means.items():
        m = results[key]
        correct = round(m["accuracy"] * m["n"])
        auroc = "undefined" if m["auroc"] is None else f"{m['auroc']:.3f}"
        parts.append(
            f"{short_name(key)}: {count(correct, 'right answer')}{_sure(right)},"
            f" {count(m['n'] - correct, 'wrong answer')}{_sure(wrong)}; AUROC {auroc}."
        )
    return " ".join([f"Confidence of right and of wrong answers to {task}.", *parts])


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f" with mean confidence {percent(confidence)}"


def coverage_text(results: Mapping[str, Mapping[str, Any]], task: str) -> str:
    """Describe a coverage plot; `results`: method -> numbers of the task in eval.json."""
    parts = [f"{short_name(key)} {percent(m['coverage_at_90'])}" for key, m in results.items()]
    return (
        f"Accuracy against the share of the questions of {task} that is answered, the most"
        f" confident first. Share answered at 90 % accuracy: {', '.join(parts)}."
    )


def dynamics_text(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Describe training; `runs` holds (name of the method, lines of its dynamics.jsonl)."""
    parts = []
    for name, lines in runs:
        for data, seen in (("train", "trained on"), ("validation", "not trained on")):
            for group in ("known", "unknown"):
                chosen = [x for x in lines if x["data"] == data and x["group"] == group]
                if chosen:
                    first, last = chosen[0], chosen[-1]
                    parts.append(
                        f"{name}, {group} questions {seen}: accuracy from"
                        f" {percent(first['accuracy'])} to {percent(last['accuracy'])}, mean"
                        f" confidence from {percent(first['confidence'])} to"
                        f" {percent(last['confidence'])}."
                    )
    return " ".join(["Accuracy and mean confidence over training steps.", *parts])
