"""Paired differences between methods, and sentences that claim no more than they show.

NLL and Brier decide; their p-values form one Holm family over all comparisons of a table. ECE and
accuracy are families of their own and only add to what NLL and Brier say. Rows with a temperature
are compared with SFT and its temperature, in families of their own. References are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cogcalib_jax.method.config import method_label
from cogcalib_jax.metrics.significance import (
    ECE_BINS,
    FEWEST_SEEDS,
    PairedDifference,
    holm,
    paired_difference,
    resamples_for,
)
from cogcalib_jax.report.load_run import Predictions
from cogcalib_jax.report.tables import Table
from cogcalib_jax.report.text import (
    COMMONEST,
    DERIVED,
    REFERENCES,
    costs_more,
    count,
    gate_label,
    is_at_chance,
    is_gated,
    is_sampled,
    is_tempered,
    questions,
    short_name,
    split_key,
    term_label,
)

LEVEL = 0.05
# `compare` takes more if the family is so large that no p-value could pass Holm's correction.
RESAMPLES = 4000
DECIDING = ("NLL", "Brier")
FAMILIES = (DECIDING, ("ECE",), ("accuracy",))
TEMPERED_SFT = "sft_temperature"
METRICS = tuple(metric for family in FAMILIES for metric in family)

BETTER, WORSE, MIXED, SAME = "better", "worse", "mixed", "same"


@dataclass(frozen=True)
class Comparison:
    """One method against another on the same questions; differences are method minus other."""

    method: str
    other: str
    differences: Mapping[str, PairedDifference]
    """NLL, Brier, ECE and accuracy"""
    claimed: frozenset[str] = frozenset()
    """metrics whose difference stays beyond noise after Holm's correction"""

    @property
    def outcome(self) -> str:
        """The claim that NLL and Brier together allow: better, worse, mixed or same."""
        signs = {self.differences[m].difference < 0 for m in DECIDING if m in self.claimed}
        if not signs:
            return SAME
        return MIXED if len(signs) == 2 else BETTER if signs.pop() else WORSE


def compare(
    seeds: Sequence[Mapping[str, Predictions]],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    resamples: int = RESAMPLES,
    bins: int = ECE_BINS,
) -> list[Comparison]:
    """Return all comparisons of a table, Holm-corrected; a seed maps method -> predictions.

    Every seed holds the same methods, and all methods of a seed the same questions in one order.
    pairs: (method, other); None: those that the methods' names call for (`_pairs`).
    bins: of the ECE, those of the results.
    """
    pairs = _pairs(seeds[0]) if pairs is None else pairs
    resamples = max(resamples, resamples_for(len(DECIDING) * len(pairs), LEVEL))
    comparisons = [
        Comparison(method, other, _differences(seeds, method, other, resamples, bins))
        for method, other in pairs
    ]
    claims: dict[int, set[str]] = {i: set() for i in range(len(comparisons))}
    for family in FAMILIES:
        places = [(i, metric) for i in range(len(comparisons)) for metric in family]
        adjusted = holm([comparisons[i].differences[m].p_value for i, m in places])
        for (i, metric), p in zip(places, adjusted, strict=True):
            if p <= LEVEL:
                claims[i].add(metric)
    return [replace(c, claimed=frozenset(claims[i])) for i, c in enumerate(comparisons)]


def verdict(
    comparisons: Sequence[Comparison],
    metrics: Sequence[Mapping[str, Mapping[str, Any]]],
    weights: Mapping[str, float] | None = None,
) -> list[str]:
    """Return the findings as sentences; `metrics` holds the numbers of eval.json of each seed.

    With two to four seeds nothing is called beyond noise: `difference_table` shows every seed.
    weights: of the terms, by method; methods of different weights do not show the gate's effect.
    """
    weights = weights or {}
    lines = []
    if 1 < len(metrics) < FEWEST_SEEDS:
        lines.append(
            f"{len(metrics)} seeds are too few to call a difference beyond the noise of training."
        )
    else:
        lines += _against([c for c in comparisons if c.other == "sft"])
        lines += _against(
            [c for c in comparisons if c.other == TEMPERED_SFT and is_tempered(c.method)]
        )
        rivalled = [c.method for c in comparisons if is_gated(c.method) or is_sampled(c.method)]
        for method in dict.fromkeys(rivalled):
            lines += _against_rivals(method, comparisons)
    lines += [*at_floor(metrics), *at_chance(metrics)]
    if comparisons and len(metrics) == 1:
        lines.append(
            "Noise here is that of the test questions; another training seed may differ by more."
        )
    if not 1 < len(metrics) < FEWEST_SEEDS:
        lines += [_gate(c, weights) for c in comparisons if c.other in _ungated(c.method)]
    return lines


def difference_table(comparisons: Sequence[Comparison], n: int) -> Table | None:
    """Return paired differences with their 95 % intervals; None if nothing is compared.

    If all rows have a temperature, the header says so once. Two to four seeds are shown one by one:
    an interval over so few says little.
    """
    if not comparisons:
        return None
    seeds = len(comparisons[0].differences["NLL"].per_seed)
    few = 1 < seeds < FEWEST_SEEDS
    scaled = all(is_tempered(c.method) and is_tempered(c.other) for c in comparisons)
    beyond = "beyond noise" if seeds > 1 else "beyond noise\nof questions"
    rows, marked = [], False
    for c in comparisons:
        cells = [_cell(c.differences[metric], metric, few) for metric in METRICS]
        unsure = set() if few else {metric for metric in METRICS if _only_before_holm(c, metric)}
        cells = [x + ("†" if m in unsure else "") for x, m in zip(cells, METRICS, strict=True)]
        marked |= bool(unsure)
        if not few:
            cells.append(", ".join(m for m in METRICS if m in c.claimed) or "none")
        rows.append((f"{_name(c.method, scaled)} minus {_name(c.other, scaled)}", *cells))
    note = f"Paired over the same {count(n, 'question')}; "
    if few:
        note += f"one number for each of {seeds} seeds."
    else:
        noise = f"{seeds} seeds" if seeds > 1 else "one seed, so without the noise of training"
        note += (
            f"{noise}; 95 % intervals.\nBeyond noise: p at most {LEVEL} after Holm's correction"
            f" over the {len(DECIDING) * len(comparisons)} tests of NLL and Brier, and over those"
            " of ECE and of accuracy."
        )
    if marked:
        note += f"\n†: the interval leaves out 0, but p is above {LEVEL} after the correction."
    units = {"NLL": "NLL\n(nats)", "accuracy": "accuracy\n(points)"}
    first = "difference, each\nwith its temperature" if scaled else "difference"
    header = [first, *(units.get(metric, metric) for metric in METRICS)]
    return Table(tuple(header if few else [*header, beyond]), tuple(rows), note)


def _only_before_holm(c: Comparison, metric: str) -> bool:
    d = c.differences[metric]
    return metric not in c.claimed and metric != "ECE" and not d.low <= 0 <= d.high


def _name(key: str, scaled: bool) -> str:
    name = short_name(key)
    return name.removesuffix(DERIVED["temperature"]) if scaled else name


def _pairs(methods: Iterable[str]) -> list[tuple[str, str]]:
    present = [m for m in methods if m == TEMPERED_SFT or not (m in REFERENCES or is_tempered(m))]
    pairs = [(m, "sft") for m in present if m != "sft" and "sft" in present]
    for gated in filter(is_gated, present):
        # A random share of the gate's size: what is left is whom the gate picks.
        random = method_label(split_key(gated)[0], "random")
        rivals = ["sft_best_epoch", "sft_temperature", *filter(is_sampled, present)]
        rivals += [*_ungated(gated), random]
        pairs += [(gated, rival) for rival in rivals if rival in present]
    for several in filter(is_sampled, present):
        free = ("sft_best_epoch", "sft_temperature")
        pairs += [(several, rival) for rival in free if rival in present]
    for method in present:
        term, gate, derivation = split_key(method)
        ungated = method_label(term, "all")
        if gate not in ("", "all", "adaptive") and not derivation and ungated in present:
            pairs.append((method, ungated))
        fixed = method_label(term, "frozen_random")
        if gate == "frozen_labels" and not derivation and fixed in present:
            # As above: whom it picks, apart from how many.
            pairs.append((method, fixed))
    return pairs


def _ungated(key: str) -> tuple[str, ...]:
    """The same term on all data, for a gated method."""
    return (method_label(split_key(key)[0], "all"),) if is_gated(key) else ()


def tempered_pairs(methods: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of every method with its temperature and SFT with its own."""
    scaled = [m for m in methods if is_tempered(m)]
    if TEMPERED_SFT not in scaled:
        return []
    return [(m, TEMPERED_SFT) for m in scaled if m != TEMPERED_SFT]


def _differences(
    seeds: Sequence[Mapping[str, Predictions]], method: str, other: str, resamples: int, bins: int
) -> dict[str, PairedDifference]:
    def difference(statistic: str, rows: Any) -> PairedDifference:
        return paired_difference(
            [rows(seed[method]) for seed in seeds],
            [rows(seed[other]) for seed in seeds],
            statistic=statistic,
            clusters=[seed[method].clusters for seed in seeds],
            resamples=resamples,
            bins=bins,
        )

    return {
        "NLL": difference("mean", lambda p: p.nll),
        "Brier": difference("mean", lambda p: p.brier),
        "ECE": difference("ece", lambda p: (p.confidence, p.correct)),
        "accuracy": difference("mean", lambda p: p.correct),
    }


def _cell(d: PairedDifference, metric: str, few: bool) -> str:
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)

    def show(value: float) -> str:
        return f"{round(scale * value, digits) + 0.0:+.{digits}f}"  # + 0.0: no "-0.000"

    if few:
        return " ".join(show(value) for value in d.per_seed)
    if metric == "ECE":
        return show(d.difference)
    return f"{show(d.difference)} [{show(d.low)}, {show(d.high)}]"


def _against(comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences on the one model that all `comparisons` are with."""
    if not comparisons:
        return []
    other = short_name(comparisons[0].other)
    words = {
        BETTER: f"Better than {other} beyond noise",
        WORSE: f"Worse than {other} beyond noise",
        MIXED: f"Better than {other} in one score and worse in the other, both beyond noise",
        SAME: f"No difference from {other} beyond noise in NLL or Brier",
    }
    return _grouped(words, comparisons, lambda c: f"{short_name(c.method)}{_grounds(c)}")


def _against_rivals(method: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Sentences on simpler and costlier methods; the same term on all data is the gate's line."""
    name = short_name(method)
    elsewhere = ("sft", *_ungated(method))
    rivals = [c for c in comparisons if c.method == method and c.other not in elsewhere]
    lines = []
    kinds = {
        "simpler": lambda key: not is_sampled(key),
        "other": lambda key: is_sampled(key) and not costs_more(key),
        "costlier": costs_more,
    }
    for kind, belongs in kinds.items():
        words = {
            BETTER: f"{name} is better beyond noise than these {kind} methods",
            WORSE: f"{name} is worse beyond noise than these {kind} methods",
            MIXED: f"{name} is better in one score, worse in the other than these {kind} methods",
            SAME: f"{name} does not differ beyond noise in NLL or Brier from these {kind} methods",
        }
        chosen = [c for c in rivals if belongs(c.other)]
        lines += _grouped(
            words,
            chosen,
            lambda c: f"{short_name(c.other)}{_grounds(c, name if c.outcome == SAME else '')}",
        )
    return lines


def _grouped(
    words: Mapping[str, str], comparisons: Sequence[Comparison], tell: Callable[[Comparison], str]
) -> list[str]:
    """One sentence for each outcome."""
    lines = []
    for outcome, opening in words.items():
        those = [tell(c) for c in comparisons if c.outcome == outcome]
        if those:
            lines.append(f"{opening}: {'; '.join(those)}.")
    return lines


def _grounds(c: Comparison, of: str = "") -> str:
    """In brackets: the metrics beyond noise; `of`: the name of the method that has them."""
    parts = []
    for word, sign in (("lower", -1), ("higher", 1)):
        those = [m for m in METRICS if m in c.claimed and sign * c.differences[m].difference > 0]
        if those:
            parts.append(f"{', '.join(those)} {word}")
    side = f"{of}: " if of else ""
    return f" ({side}{'; '.join(parts)})" if parts else ""


def _gate(c: Comparison, weights: Mapping[str, float]) -> str:
    term = term_label(split_key(c.method)[0])
    own, other = weights.get(c.method), weights.get(c.other)
    if own != other:
        return (
            f"The effect of the gate is not known: {short_name(c.method)} was trained with weight"
            f" {own}, {short_name(c.other)} with {other}; give both the same weight to see it."
        )
    words = {
        BETTER: f"it made {term} better beyond noise{_grounds(c)}",
        WORSE: f"it made {term} worse beyond noise{_grounds(c)}",
        MIXED: f"one score better and the other worse, both beyond noise{_grounds(c)}",
        SAME: f"none in NLL or Brier beyond noise{_grounds(c)}",
    }[c.outcome]
    numbers = ", ".join(f"{m} {_cell(c.differences[m], m, False)}" for m in DECIDING)
    return (
        f"Effect of the gate ({short_name(c.method)} minus {term} on {gate_label('all')}:"
        f" {numbers}): {words}."
    )


def at_floor(metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Name the methods whose ECE a calibrated model might show as well, in every seed.

    A model at chance is left out, as a low ECE is easy if all confidences are low; so is the
    constant prediction, whose ECE says only that training and test rows are alike.
    """
    names = [
        short_name(key)
        for key in metrics[0]
        if key != COMMONEST
        and all(seed[key]["ece_p_value"] > LEVEL for seed in metrics)
        and not any(is_at_chance(seed[key]) for seed in metrics)
    ]
    if not names:
        return []
    return [
        f"ECE at its noise floor, not distinguishable from calibrated at {_n(metrics)}:"
        f" {'; '.join(names)}."
    ]


def at_chance(metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Name the methods that are not better than guessing, in every seed."""
    keys = [
        key
        for key in metrics[0]
        if key != COMMONEST and all(is_at_chance(seed[key]) for seed in metrics)
    ]
    if not keys:
        return []
    names = "; ".join(map(short_name, keys))
    if all(seed[key].get("chance", 0.0) == 0 for seed in metrics for key in keys):
        return [f"Next to nothing is right, so calibration means nothing ({_n(metrics)}): {names}."]
    return [
        f"No better than guessing, so calibration means nothing ({_n(metrics)}; the 95 % interval"
        f" of the accuracy includes chance): {names}."
    ]


def _n(metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    seeds = f" in each of {len(metrics)} seeds" if len(metrics) > 1 else ""
    return f"n = {questions(next(iter(metrics[0].values()))):,}{seeds}"
