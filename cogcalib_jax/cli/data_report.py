"""The parts of a dry run's report: sections of text, and at the end what deserves a look."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import prompt_prefix
from cogcalib_jax.data.example import (
    Encoded,
    EncodedSplit,
    Example,
    fold_case,
    question_clusters,
    question_key,
    repeats_note,
)
from cogcalib_jax.metrics.bootstrap import NARROW, expected_noise_floor
from cogcalib_jax.metrics.significance import (
    detectable_accuracy_difference,
    detectable_mean_difference,
)
from cogcalib_jax.report.tables import Table, as_text
from cogcalib_jax.report.text import count, percent

WIDTH = 100

# Assumed standard deviations of two methods' difference on one question, and shares of questions
# that one method alone answers right. The world's comparison (1,520 questions) shows .19 to .31 in
# Brier, .90 to 1.32 in NLL and shares of .005 to .04.
BRIER_DEVIATION = 0.25
NLL_DEVIATION = 1.0
DISCORDANT = (0.05, 0.1)

# A split is skewed if its commonest answer is this much above guessing, in accuracy and in standard
# errors.
SKEWED, SKEWED_ERRORS = 0.05, 3.0
# Shares and sizes above which the report adds a remark.
COMMON_REFERENCE = 0.1
MANY_CUT = 0.05
HIGH_FLOOR = 0.05


@dataclass
class Report:
    """A text that grows by sections; its remarks come last, under "Worth a look"."""

    title: str
    remarks: list[str] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)

    def section(self, heading: str) -> None:
        self._lines += ["", f"== {heading}"]

    def line(self, text: str) -> None:
        """Add a sentence, wrapped."""
        self._lines += textwrap.wrap(
            text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )

    def verbatim(self, text: str) -> None:
        """Add a quotation that keeps its line ends."""
        self._lines += [f"  | {line}" for line in text.split("\n")]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = as_text(Table(tuple(header), tuple(map(tuple, rows)), ""))
        self._lines += shown.rstrip().split("\n")

    def text(self) -> str:
        remarks = self.remarks or ["Nothing stands out."]
        closing = ["", "== Worth a look"]
        for remark in remarks:
            closing += textwrap.wrap(f"- {remark}", WIDTH, subsequent_indent="  ")
        return "\n".join([*textwrap.wrap(self.title, WIDTH), *self._lines, *closing])


def show_rows(report: Report, splits: Mapping[str, EncodedSplit], notes: Sequence[str]) -> None:
    """Add the number of rows, their answers, and the notes on rows that were left out."""
    report.section("Rows and answers")
    filled = {name: [e.example for e in rows] for name, rows in splits.items() if rows}
    closed = {name: rows for name, rows in filled.items() if not rows[0].is_open}
    opened = {name: rows for name, rows in filled.items() if rows[0].is_open}
    if closed:
        _show_labels(report, closed)
    if opened:
        _show_references(report, opened)
    for note in dict.fromkeys(notes):
        report.line(f"Note: {note}")


def _show_labels(report: Report, splits: Mapping[str, Sequence[Example]]) -> None:
    table, skewed = [], []
    for name, rows in splits.items():
        sizes = Counter(len(row.choices) for row in rows)
        options = ", ".join(
            f"{size}" if len(sizes) == 1 else f"{size} ({sizes[size]:,} x)"
            for size in sorted(sizes)
        )
        shares = np.bincount([row.answer for row in rows], minlength=max(sizes)) / len(rows)
        shown = " ".join(f"{100 * share:.0f}" for share in shares)
        best, chance = shares.max(), _chance(rows)
        table.append((name, f"{len(rows):,}", options, shown, percent(best), percent(chance)))
        error = (chance * (1 - chance) / len(rows)) ** 0.5
        if best - chance > max(SKEWED, SKEWED_ERRORS * error):
            skewed.append(f"{name} {percent(best)} (option {shares.argmax() + 1})")
    if skewed:
        report.remarks.append(
            f"the right answer often stands at the same place: choosing it always is right in"
            f" {', '.join(skewed)}, so compare accuracy with that and not with guessing; a model"
            " may learn the place. Shuffle the options if their order means nothing"
        )
    report.table(
        (
            "split",
            "questions",
            "options",
            "right at option\n1, 2, ... (%)",
            "always the\ncommonest",
            "guessing",
        ),
        table,
    )


def _chance(rows: Sequence[Example]) -> float:
    """Return the expected accuracy of guessing."""
    return float(np.mean([1 / len(row.choices) for row in rows]))


def _show_references(report: Report, splits: Mapping[str, Sequence[Example]]) -> None:
    table, common = [], []
    for name, rows in splits.items():
        counts = [len(row.aliases) for row in rows]
        accepted = f"{min(counts)} / {sum(counts) / len(rows):.1f} / {max(counts)}"
        answers = Counter(fold_case(row.aliases[0]) for row in rows)
        ((answer, times),) = answers.most_common(1)
        commonest, share = textwrap.shorten(answer, 30, placeholder="..."), times / len(rows)
        table.append((name, f"{len(rows):,}", accepted, commonest, percent(share)))
        if share > COMMON_REFERENCE:
            common.append(f"{name} {percent(share)} ({commonest!r})")
    if common:
        report.remarks.append(
            f"one answer is frequent: giving it always is right in {', '.join(common)}"
        )
    report.table(
        (
            "split",
            "questions",
            "accepted answers\nleast / mean / most",
            "commonest\nreference",
            "share",
        ),
        table,
    )


def show_repeats(report: Report, splits: Mapping[str, Sequence[Example]]) -> None:
    """Add how many questions of a split repeat another one of it."""
    report.section("Repeated questions")
    report.line("No question is in two splits: rows that repeat one of a later split are left out.")
    for name, rows in splits.items():
        if repeats := len(rows) - _distinct(rows):
            report.line(
                f"Within {name}, {repeats:,} of {count(len(rows), 'question')} repeat an earlier"
                " one."
            )


def _distinct(rows: Sequence[Example]) -> int:
    return len({question_key(row) for row in rows})


def show_lengths(report: Report, splits: Mapping[str, EncodedSplit], config: DataConfig) -> None:
    """Add token counts, and how many passages were cut."""
    report.section("Tokens of a prompt with its longest option")
    table, many = [], []
    for name, split in splits.items():
        if not split:
            continue
        # `split.lengths` counts inputs: the last token of a text is predicted and never read.
        counts, cut = split.lengths + 1, cut_rows(split)
        least, median, high, most = np.percentile(counts, [0, 50, 95, 100])
        numbers = f"{least:.0f}", f"{median:g}", f"{high:.0f}", f"{most:.0f}"
        share = percent(len(cut) / len(split))
        table.append((name, *numbers, f"{len(cut):,} ({share})"))
        if len(cut) > MANY_CUT * len(split):
            many.append(f"{name} {share}")
    if many:
        report.remarks.append(
            f"passages are cut to fit into {config.max_length} tokens, of {', '.join(many)}; a"
            " larger --data.max-length keeps more, and costs memory and time"
        )
    report.table(("split", "least", "median", "95 %", "most", "passages cut"), table)
    report.line(f"At most {config.max_length} tokens are kept (data.max_length).")


def cut_rows(split: EncodedSplit) -> list[Encoded]:
    """Return the rows whose prompt does not hold the whole passage."""
    return [e for e in split if e.example.passage and e.example.passage not in e.prompt]


def show_prompt(
    report: Report,
    name: str,
    split: EncodedSplit,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
) -> None:
    """Add the first row of a split as the model reads it."""
    row = split[0]
    report.section("A prompt as the model reads it")
    report.line(
        f"Row {row.id} of {name}, with special tokens; ⏎ is a line end, and at ▶ the right answer"
        " begins:"
    )
    special = "".join(tokenizer.convert_ids_to_tokens(prompt_prefix(config, tokenizer)))
    text = f"{special}{row.prompt}▶{row.completions[row.answer]}"
    report.verbatim(text.replace("\n", "⏎\n"))
    answer = row.completion_ids[row.answer]
    tokens = " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(answer)))
    report.line(
        f"{count(len(row.prompt_ids), 'token')} and {count(len(answer), 'token')} of answer:"
        f" {tokens}"
    )
    if not row.example.is_open:
        kind = "one token each" if split.single_token_options else "not one token of its own each"
        report.line(f"Its options ({kind}, over the whole split):")
        for completion in row.completions:
            report.verbatim(repr(completion))


def show_precision(report: Report, name: str, split: EncodedSplit, bins: int) -> None:
    """Add the smallest differences that a test set of this size can show."""
    examples = [e.example for e in split]
    n = _distinct(examples)
    chance = 0.0 if split.is_open else _chance(examples)
    floor = expected_noise_floor(n, chance, bins=bins)
    report.section(f"What {count(n, 'question')} of {name} can show")
    for note in repeats_note(name, question_clusters(examples)):
        report.line(f"{note}.")
    report.line(
        f"ECE of a perfectly calibrated model, by chance ({bins} bins): mean {floor.wide[0]:.3f},"
        f" 95th percentile {floor.wide[1]:.3f} if confidences are spread evenly from"
        f" {chance:.3g} to 1; {floor.narrow[0]:.3f} and {floor.narrow[1]:.3f} if all lie within"
        f" {NARROW} of {(1 + chance) / 2:.3g}. An ECE below that cannot be told from calibrated."
    )
    found = [(share, detectable_accuracy_difference(n, share)) for share in DISCORDANT]
    accuracy = ", ".join(
        f"{'none' if d is None else f'{100 * d:.1f} points'} if one is right and one wrong on"
        f" {100 * share:.0f} % of them"
        for share, d in found
    )
    report.line(
        "Smallest true difference between two methods on the same questions that is found in 80 %"
        f" of all cases (two-sided, 5 %): in accuracy {accuracy}; in Brier"
        f" {detectable_mean_difference(n, BRIER_DEVIATION):.3f} and in NLL"
        f" {detectable_mean_difference(n, NLL_DEVIATION):.3f} nats, if differences on one question"
        f" have standard deviations of {BRIER_DEVIATION} and {NLL_DEVIATION} (seen on the world;"
        " yours may differ: docs/metrics.md)."
    )
    if floor.wide[1] > HIGH_FLOOR:
        report.remarks.append(
            f"{name}: with {count(n, 'question')} a calibrated model may well show an ECE of"
            f" {floor.wide[1]:.2f}; compare Brier and NLL, and take more questions if you can"
        )
