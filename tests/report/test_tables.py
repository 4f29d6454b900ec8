"""The table shows the numbers of eval.json, rounded, and nothing else."""

import json
from itertools import pairwise

import numpy as np
import pytest

from cogcalib_jax.errors import UserError
from cogcalib_jax.metrics import summarize_confidence
from cogcalib_jax.report.comparison import results_text
from cogcalib_jax.report.load_run import read_predictions
from cogcalib_jax.report.tables import (
    CONFIDENCES,
    as_markdown,
    as_text,
    comparison_table,
    confidence_table,
    vocabulary_table,
)
from cogcalib_jax.report.text import TEXT_WIDTH, is_gated, long_name, looks, short_name


def metrics(ece: float = 0.1594, **changed) -> dict:
    numbers = {
        "n": 1520,
        "accuracy": 0.3812,
        "ece": ece,
        "ece_noise_floor": {"mean": 0.0304, "p95": 0.0411},
        "ece_p_value": 0.001,
        "brier": 0.7123,
        "nll": 2.0141,
        "auroc": 0.7,
        "confidence": 0.54,
        "coverage_at_90": 0.1236,
    }
    numbers["vocab"] = numbers | {"ece": 0.1451}
    return numbers | changed


def test_cells_are_the_numbers_of_eval_json():
    table = comparison_table([{"sft": metrics()}])
    assert table.rows == (
        (
            "SFT",
            "38.1 %",
            "54.0 %",
            "0.159 (0.030 / 0.041)",
            "0.712",
            "2.014",
            "0.700",
            "12.4 %",
            "0.145",
        ),
    )
    assert "n = 1,520 questions" in table.note


def test_repeated_questions_are_said_under_the_table():
    repeated = metrics(n_questions=507)
    table = comparison_table([{"sft": repeated, "cols": repeated}])
    assert "n = 1,520 rows" in table.note
    assert table.note.count("1,520 rows ask 507 different questions") == 1
    assert "different questions" not in comparison_table([{"sft": metrics()}]).note


def test_several_seeds_show_mean_and_sample_standard_deviation():
    values = [0.10, 0.14, 0.18]
    table = comparison_table([{"sft": metrics(ece=v)} for v in values])
    sd = np.std(values, ddof=1)
    assert table.rows[0][3] == f"0.140 ± {sd:.3f} (0.030 / 0.041)"
    assert "3 seeds" in table.note


def test_an_undefined_metric_is_not_a_number_in_disguise():
    table = comparison_table([{"sft": metrics(auroc=None, vocab=None)}])
    assert table.rows[0][6] == "n/a"
    assert table.rows[0][8] == "n/a"
    assert vocabulary_table({"sft": metrics(vocab=None)}) is None


def test_vocabulary_scores_of_a_temperature_are_marked_as_not_rescaled():
    table = comparison_table([{"sft": metrics(), "sft_temperature": metrics()}])
    assert [row[-1] for row in table.rows] == ["0.145", "0.145*"]
    assert "\n* " in table.note


def test_rows_of_several_models_say_what_they_cost():
    table = comparison_table(
        [{"sft": metrics(), "mc_dropout": metrics(mc_passes=10), "ensemble": metrics(members=5)}]
    )
    assert [row[0] for row in table.rows[1:]] == ["MC-dropout", "Ensemble"]
    assert "\nEnsemble (deep ensemble of SFT, Lakshminarayanan et al. 2017)." in table.note
    assert "\nMC-dropout: probabilities averaged over 10 passes" in table.note
    assert "an answer costs 10 times as much" in table.note
    assert "\nEnsemble: probabilities averaged over 5 members" in table.note
    assert "training and an answer cost 5 times as much" in table.note
    table = comparison_table([{"sft": metrics(), "laplace_lora": metrics(posterior_samples=10000)}])
    assert "\nLaplace-LoRA: probabilities averaged over 10,000 draws" in table.note
    both = {task: metrics(members=5) for task in ("world", "world:taught_form_b")}
    assert comparison_table([both]).note.count("times as much") == 1
    assert "times as much" not in comparison_table([{"sft": metrics()}]).note


def test_seeds_of_different_comparisons_are_refused():
    with pytest.raises(UserError, match="different methods"):
        comparison_table([{"sft": metrics()}, {"cols": metrics()}])


def test_text_columns_line_up():
    text = as_text(comparison_table([{"sft": metrics(), "cols": metrics(accuracy=1.0)}]))
    header, units, rule, sft, cols, *_ = text.split("\n")
    ends = [i for i, c in enumerate(rule) if c == "-" and rule[i + 1 : i + 2] in ("", " ")]
    for line in (sft, cols):
        assert len(line) == len(rule)
        assert all(line[end + 1 : end + 2] in ("", " ") for end in ends)
    assert units.startswith("method")
    assert header.rstrip().endswith("ECE over")


EVERY_ROW = [
    *("base", "commonest_answer", "sft", "sft_temperature", "sft_best_epoch"),
    *("sft_best_epoch_temperature", "ls", "ls_temperature", "cols", "cols_temperature"),
]


def test_a_temperatures_row_is_indented_below_its_method_on_a_terminal():
    table = comparison_table([{key: metrics() for key in EVERY_ROW}])
    lines = as_text(table).split("\n")
    table_lines = lines[: lines.index(next(x for x in lines if x.startswith("CoLS"))) + 2]
    assert max(map(len, table_lines)) <= TEXT_WIDTH
    below = {before.split("  ")[0]: after for before, after in pairwise(table_lines)}
    for name in ("SFT", "SFT, best epoch", "LS on all data", "CoLS"):
        assert below[name].startswith("  + temperature ")
    assert "| SFT + temperature |" in as_markdown(table)


def test_the_table_says_which_row_predict_gives():
    table = comparison_table([{"sft": metrics(), "sft_temperature": metrics()}])
    assert "the confidences that eval.py --predict and calibration.json give" in table.note
    assert "--predict" not in comparison_table([{"sft": metrics()}]).note


def test_intervals_and_best_values_stand_on_the_page_and_not_on_a_terminal():
    good = metrics(ece=0.05, ci95={"accuracy": [0.357, 0.406], "nll": [1.9, None]})
    table = comparison_table([{"base": metrics(ece=0.01), "sft": metrics(), "cols": good}])
    assert table.rows[2][1] == "38.1 %\n[35.7, 40.6]"
    assert "[" not in table.rows[2][5]
    ece = table.header.index("ECE\n(floor: mean / 95 %)")
    # The base is not trained, and columns of equal values have no best one.
    assert table.best == {(2, ece)}
    # What reads alike is marked alike.
    alike = metrics(ece=0.0501)
    assert comparison_table([{"sft": metrics(), "ls": alike, "cols": good}]).best == {
        (1, ece),
        (2, ece),
    }
    assert "**0.050 (0.030 / 0.041)**" in as_markdown(table)
    assert "[35.7, 40.6]" in as_markdown(table) and "95 % interval" in as_markdown(table)
    assert "[" not in as_text(table) and "Bold" not in as_text(table)


def test_no_method_of_others_is_called_ours():
    keys = [*EVERY_ROW, "combls", "coecp", "mc_dropout", "ensemble", "laplace_lora", "blob"]
    assert "ours" not in as_text(comparison_table([{key: metrics() for key in keys}]))


def test_rows_without_a_vocabulary_are_left_out_of_its_table_alone():
    results = {"commonest_answer": metrics(vocab=None), "sft": metrics()}
    assert [row[0] for row in vocabulary_table(results).rows] == ["SFT"]
    assert comparison_table([results]).rows[0][-1] == "n/a"


def test_markdown_has_as_many_cells_in_every_row_and_hides_no_pipe():
    table = comparison_table([{"a|b": metrics(), "sft_temperature": metrics()}])
    lines = [line for line in as_markdown(table).split("\n") if line.startswith("|")]
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {10}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("sft", "SFT"),
        ("sft_best_epoch", "SFT, best validation epoch"),
        ("sft_temperature", "SFT + temperature"),
        ("ls", "LS on all data"),
        ("cols", "CoLS (label smoothing on known data, Wang et al. 2025)"),
        ("combls", "CoMbLS (margin-based label smoothing on known data, Wang et al. 2025)"),
        ("cokl", "KL to the start on known data"),
        ("coecp", "CoECP (confidence penalty on known data, Wang et al. 2025)"),
        ("sft_best_epoch_temperature", "SFT, best validation epoch + temperature"),
        ("base", "Base (the model as it was given, before style adaptation)"),
        ("cols_temperature", "CoLS + temperature"),
        ("ls-frozen_labels", "LS on known data, frozen labels"),
        ("ecp-oracle", "ECP on known data, true labels"),
        ("mc_dropout", "MC-dropout (SFT with dropout while answering, Gal and Ghahramani 2016)"),
        ("ensemble", "Ensemble (deep ensemble of SFT, Lakshminarayanan et al. 2017)"),
        ("laplace_lora", "Laplace-LoRA (a normal distribution around SFT, Yang et al. 2024)"),
        ("blob", "BLoB (SFT with a distribution over A, Wang et al. 2024)"),
        ("something_else", "something_else"),
        ("strange_temperature", "strange_temperature"),
    ],
)
def test_methods_have_names_for_people(key, name):
    assert long_name(key) == name


def test_only_the_gated_methods_themselves_are_cogcalibs():
    keys = ["sft", "ls", "cols", "coecp", "cols_temperature", "ls-random", "sft_best_epoch"]
    keys += ["mc_dropout", "ensemble", "laplace_lora"]
    assert [key for key in keys if is_gated(key)] == ["cols", "coecp"]


def test_a_method_looks_the_same_whatever_stands_beside_it():
    assert looks(["cols"])["cols"] == looks(["sft", "x", "cols"])["cols"]
    many = ["sft", "sft_best_epoch", "sft_temperature", "ls", "cols", "mc_dropout", "ensemble"]
    many += ["laplace_lora", "x", "y", "z"]
    assert len({(look.color, look.line) for look in looks(many).values()}) == len(many)
    assert len({short_name(key) for key in many}) == len(many)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("mean", "mean log-probability per token"),
        ("sum", "log-probability summed over tokens"),
        ("chars", "log-probability per character"),
        ("pmi", "log-probability minus the one without the question"),
    ],
)
def test_the_note_names_the_rule_of_options_of_several_tokens_once(rule, words):
    several = metrics(option_score=rule, single_token_options=False)
    table = comparison_table([{"sft": several, "cols": several}])
    assert table.note.count("Options are scored by") == 1 and words in table.note


def test_the_note_is_silent_if_rules_agree_or_are_not_known():
    single = metrics(option_score="mean", single_token_options=True)
    assert "scored by" not in comparison_table([{"sft": single, "cols": metrics()}]).note
    # The prior of an option changes its score, and so does its length.
    for rule in ("pmi", "chars"):
        one = metrics(option_score=rule, single_token_options=True)
        assert "Options are scored by" in comparison_table([{"sft": one}]).note


def test_the_right_options_own_nll_stands_beside_the_options_numbers():
    several = metrics(gold_nll=3.21, option_score="mean", single_token_options=False)
    older = metrics(option_score="mean", single_token_options=False)
    table = comparison_table([{"sft": several, "cols": older}])
    column = table.header.index("right option\n(nats a token)")
    assert [row[column] for row in table.rows] == ["3.210", "n/a"]
    letters = metrics(gold_nll=3.21, option_score="mean", single_token_options=True)
    assert len(comparison_table([{"sft": letters}]).header) == len(table.header) - 1


OPEN_RIGHT = np.arange(40) % 3 == 0


def open_metrics(seed=0, names=tuple(CONFIDENCES)):
    rng = np.random.default_rng(seed)
    each = {n: summarize_confidence(rng.random(40), OPEN_RIGHT, resamples=100) for n in names}
    return {**each["sequence"], "exact_match": OPEN_RIGHT.mean(), "f1": 0.5, "vocab": None} | {
        "confidences": each
    }


def test_exact_match_and_f1_stand_where_accuracy_stood():
    table = comparison_table([{"sft": open_metrics(), "cols": open_metrics(1)}])
    assert table.header[:3] == ("method", "exact match", "F1")
    assert "ECE over\nvocabulary" not in table.header
    assert (table.rows[0][1].split("\n")[0], table.rows[0][2]) == ("35.0 %", "50.0 %")
    assert "(" in table.rows[0][table.header.index("ECE\n(floor: mean / 95 %)")]
    assert "scores over the options" not in table.note
    assert vocabulary_table({"sft": open_metrics()}) is None


def test_tasks_of_both_kinds_share_a_table_that_says_so():
    closed = summarize_confidence(np.full(40, 0.5), OPEN_RIGHT, resamples=100)
    text = results_text({"custom": open_metrics(), "boolq": closed | {"ece_classwise": 0.1}})
    assert "Open questions: exact match" in text and "custom: P(True)" in text
    assert "boolq: P(True)" not in text
    alone = results_text({"boolq": closed | {"ece_classwise": 0.1}})
    assert "pen questions" not in alone and "P(True)" not in alone


def test_every_confidence_of_every_method_has_a_line():
    table = confidence_table({"sft": open_metrics(), "cols": open_metrics(1, ("sequence",))})
    assert len(table.rows) == len(CONFIDENCES) + 1
    assert table.rows[0][0] == "SFT: probability"
    assert table.rows[-1][0].endswith(": probability")
    noted = open_metrics(names=("sequence",)) | {"notes": ["no confidence platt: all wrong"]}
    assert confidence_table({"sft": noted}).note.endswith("SFT: no confidence platt: all wrong.")


def test_questions_with_options_have_no_such_table():
    with_options = {key: value for key, value in open_metrics().items() if key != "confidences"}
    assert confidence_table({"sft": with_options}) is None


def test_a_file_of_answers_is_read_as_binary_forecasts(tmp_path):
    confidence = np.random.default_rng(0).random(40)
    rows = [
        {"id": f"q{i}", "exact_match": bool(right), "confidence": float(c)}
        for i, (right, c) in enumerate(zip(OPEN_RIGHT, confidence, strict=True))
    ]
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    got = read_predictions(file)
    wanted = summarize_confidence(confidence, OPEN_RIGHT, resamples=100)
    assert got.correct.mean() == pytest.approx(wanted["accuracy"])
    assert got.nll.mean() == pytest.approx(wanted["nll"])
    assert got.brier.mean() == pytest.approx(wanted["brier"])
