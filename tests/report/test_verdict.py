"""The verdict finds large planted differences, and claims nothing where there is none."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from cogcalib_jax.metrics import (
    brier_per_row,
    nll_per_row,
    summarize,
    summarize_confidence,
)
from cogcalib_jax.report.load_run import Predictions
from cogcalib_jax.report.verdict import compare, difference_table, tempered_pairs, verdict
from tests.report.synthetic import option_probs

RESAMPLES = 1000


def answered(sharpness: float, *, n: int = 500, noise: float = 0.0, seed: int = 0):
    """Predictions of a method, and its numbers as in eval.json."""
    probs, answers = option_probs(n, sharpness, noise=noise, seed=seed)
    mask = np.full(probs.shape, True)
    predictions = Predictions(
        ids=tuple(f"q{i}" for i in range(n)),
        correct=probs.argmax(1) == answers,
        confidence=probs.max(1),
        nll=nll_per_row(probs, mask, answers),
        brier=brier_per_row(probs, mask, answers),
    )
    return predictions, summarize(probs, mask, answers, resamples=200)


def seed_of(sharpness: dict[str, float], **kwargs):
    both = {key: answered(value, **kwargs) for key, value in sharpness.items()}
    return {k: p for k, (p, _) in both.items()}, {k: m for k, (_, m) in both.items()}


def judge(*seeds):
    comparisons = compare([p for p, _ in seeds], resamples=RESAMPLES)
    return comparisons, verdict(comparisons, [m for _, m in seeds])


def test_identical_predictions_show_no_difference_anywhere():
    methods = ["sft", "sft_best_epoch", "sft_temperature", "ls", "cols"]
    comparisons, lines = judge(seed_of(dict.fromkeys(methods, 2.0)))
    assert len(comparisons) == 7
    assert all(c.outcome == "same" and not c.claimed for c in comparisons)
    text = "\n".join(lines)
    assert "Better" not in text
    assert "Worse" not in text
    assert "No difference from SFT beyond noise in NLL or Brier: SFT, best epoch;" in text
    assert (
        "CoLS does not differ beyond noise in NLL or Brier from these simpler methods: SFT, b"
        in text
    )
    assert lines[-1].startswith("Effect of the gate (CoLS minus LS on all data")
    assert "none in NLL or Brier beyond noise." in lines[-1]


def test_a_large_planted_difference_is_found_with_its_sign():
    comparisons, lines = judge(seed_of({"sft": 2.5, "ls": 2.5, "cols": 1.0}))
    against = {(c.method, c.other): c for c in comparisons}
    assert against["cols", "sft"].outcome == "better"
    assert against["cols", "sft"].differences["NLL"].high < 0
    assert against["ls", "sft"].outcome == "same"
    assert "Better than SFT beyond noise: CoLS (NLL, Brier, ECE lower)." in lines
    assert "it made LS better beyond noise" in lines[-1]


def test_a_gate_that_harms_and_a_rival_that_wins_are_said():
    sharpness = {"sft": 2.5, "sft_temperature": 1.0, "ls": 1.0, "cols": 2.0}
    _, lines = judge(seed_of(sharpness))
    assert any("CoLS is worse beyond noise than these simpler methods: SFT +" in x for x in lines)
    assert "it made LS worse beyond noise (NLL, Brier, ECE higher)" in lines[-1]


def test_the_gates_worth_is_not_read_off_terms_of_different_weight():
    seeds = seed_of({"sft": 2.5, "ls": 1.0, "cols": 2.0})
    comparisons, _ = judge(seeds)

    def last(**weights):
        return verdict(comparisons, [seeds[1]], weights)[-1]

    assert "it made LS worse" in last(sft=0.0, ls=0.3, cols=0.3)
    told = last(sft=0.0, ls=0.3, cols=0.05)
    assert "not known: CoLS was trained with weight 0.05, LS on all data with 0.3" in told


def test_every_gate_is_held_against_all_data_and_cogcalibs_against_a_random_share():
    sharpness = {"sft": 2.5, "ls": 1.0, "cols": 2.0, "ls-random": 1.0, "ls-oracle": 2.0}
    comparisons, lines = judge(seed_of(sharpness))
    against = {(c.method, c.other): c.outcome for c in comparisons if c.other != "sft"}
    assert against == {
        ("cols", "ls"): "worse",
        ("cols", "ls-random"): "worse",
        ("ls-random", "ls"): "same",
        ("ls-oracle", "ls"): "worse",
    }
    assert any("than these simpler methods: LS on a random share" in x for x in lines)


def test_fixed_labels_are_held_against_a_fixed_random_share():
    sharpness = {"sft": 2.5, "ls-frozen_labels": 2.0, "ls-frozen_random": 1.0}
    comparisons, _ = judge(seed_of(sharpness))
    against = {(c.method, c.other): c.outcome for c in comparisons if c.other != "sft"}
    assert against == {("ls-frozen_labels", "ls-frozen_random"): "worse"}


def test_costlier_rivals_are_told_apart_from_simpler_ones():
    sharpness = {"sft": 2.5, "sft_temperature": 1.0, "cols": 2.0, "mc_dropout": 2.0, "ensemble": 1}
    comparisons, lines = judge(seed_of(sharpness))
    against = {(c.method, c.other) for c in comparisons}
    assert {("cols", "mc_dropout"), ("cols", "ensemble"), ("ensemble", "sft")} <= against
    free = {("mc_dropout", "sft_temperature"), ("ensemble", "sft_temperature")}
    assert {pair for pair in against if "cols" not in pair and "sft" not in pair} == free
    assert any("MC-dropout is worse beyond noise than these simpler" in x for x in lines)
    assert any("worse beyond noise than these simpler methods: SFT + t" in line for line in lines)
    assert any("worse beyond noise than these costlier methods: Ensemble" in line for line in lines)
    same = (
        "CoLS does not differ beyond noise in NLL or Brier from these costlier methods: MC-dropout."
    )
    assert same in lines


def test_whose_accuracy_differs_is_said_where_the_scores_do_not():
    sft, numbers = answered(1.0)
    unsure = replace(sft, correct=sft.correct & (np.arange(500) % 5 > 0))
    seed = {"sft": sft, "sft_temperature": sft, "cols": unsure}
    _, lines = judge((seed, dict.fromkeys(seed, numbers)))
    (line,) = [x for x in lines if x.startswith("CoLS does not differ beyond noise in NLL")]
    assert "SFT + temperature (CoLS: " in line and "accuracy lower" in line


def test_equal_scores_of_different_methods_are_not_called_different():
    # Two models equally far from the truth, each with its own random errors.
    seed = seed_of({"sft": 1.3}, noise=0.3)
    probs, answers = option_probs(500, 1.3)
    other = probs * np.exp(0.3 * np.random.default_rng(9).normal(size=probs.shape))
    other /= other.sum(1, keepdims=True)
    mask = np.full(probs.shape, True)
    seed[0]["cols"] = Predictions(
        seed[0]["sft"].ids,
        other.argmax(1) == answers,
        other.max(1),
        nll_per_row(other, mask, answers),
        brier_per_row(other, mask, answers),
    )
    seed[1]["cols"] = summarize(other, mask, answers, resamples=200)
    comparisons, _ = judge(seed)
    assert comparisons[0].outcome == "same"


def test_holm_makes_a_borderline_difference_noise_when_many_are_tested():
    sft, numbers = answered(1.0, n=400)
    shift = np.random.default_rng(1).normal(size=400)
    shift = (shift - shift.mean()) / shift.std() / 20 * 2.2  # mean 0, standard error .11 / 20
    near = replace(sft, nll=sft.nll + shift - 2.2 * shift.std() / 20, brier=sft.brier)
    alone = compare([{"sft": sft, "cols": near}], resamples=4000)
    crowd = {"sft": sft, "cols": near} | {f"m{i}": sft for i in range(6)}
    assert 0.01 < alone[0].differences["NLL"].p_value < 0.05
    among = next(c for c in compare([crowd], resamples=4000) if c.method == "cols")
    assert among.outcome == "same"
    assert numbers["n"] == 400


def test_ece_alone_decides_nothing():
    sft, _ = answered(1.0)
    # The same scores with the confidences of another model: only the ECE differs.
    odd = replace(sft, confidence=answered(3.0)[0].confidence)
    (comparison,) = compare([{"sft": sft, "cols": odd}], resamples=RESAMPLES)
    assert comparison.claimed == {"ECE"}
    assert comparison.outcome == "same"


def test_an_ece_at_its_floor_is_called_indistinguishable_and_no_more():
    _, lines = judge(seed_of({"sft": 2.5, "cols": 1.0}, seed=1))
    assert "ECE at its noise floor, not distinguishable from calibrated at n = 500: CoLS." in lines
    assert not any("is calibrated" in line for line in lines)


def test_a_model_at_chance_is_never_called_calibrated():
    """Confidences of 1 / 8 and answers drawn at random: an ECE at its floor, and worth nothing."""
    rng = np.random.default_rng(0)
    probs, mask = np.full((500, 8), 1 / 8), np.full((500, 8), True)
    answers = rng.integers(0, 8, 500)
    metrics = summarize(probs, mask, answers, resamples=200)
    assert metrics["ece_p_value"] > 0.05
    lines = verdict([], [{"sft": metrics, "cols": answered(1.0, seed=1)[1]}])
    (floor,) = [line for line in lines if "noise floor" in line]
    assert floor.endswith(": CoLS.")
    (chance,) = [line for line in lines if line.startswith("No better than guessing")]
    assert chance.endswith(": SFT.") and "calibration means nothing" in chance


def test_open_answers_of_which_none_is_right_mean_nothing():
    nothing = summarize_confidence(np.full(60, 1e-9), np.zeros(60), resamples=100)
    (line,) = verdict([], [{"sft": nothing}])
    assert line == "Next to nothing is right, so calibration means nothing (n = 60): SFT."


def test_the_constant_prediction_is_neither_at_its_floor_nor_at_chance():
    constant = answered(1.0, seed=1)[1]
    assert verdict([], [{"commonest_answer": constant}]) == []


def test_rows_beside_the_methods_leave_the_comparisons_as_they_were():
    """New rows must not make Holm's families of published tables larger."""
    methods = {"sft": 2.5, "sft_best_epoch": 1.5, "sft_temperature": 1.0, "ls": 1.2, "cols": 1.1}
    more = {"base": 1.0, "commonest_answer": 0.1, "sft_best_epoch_temperature": 1.0}
    more |= {"ls_temperature": 1.0, "cols_temperature": 1.0}
    before, after = (
        compare([seed_of(rows)[0]], resamples=RESAMPLES) for rows in (methods, methods | more)
    )
    assert before == after
    assert tempered_pairs([*methods, *more]) == [
        ("sft_best_epoch_temperature", "sft_temperature"),
        ("ls_temperature", "sft_temperature"),
        ("cols_temperature", "sft_temperature"),
    ]
    assert tempered_pairs(["sft", "cols", "cols_temperature"]) == []


def test_methods_with_a_temperature_each_are_compared_among_themselves():
    predictions, numbers = seed_of({"sft": 2.5, "sft_temperature": 1.0, "cols_temperature": 2.0})
    scaled = compare([predictions], pairs=tempered_pairs(predictions), resamples=RESAMPLES)
    lines = verdict(scaled, [numbers])
    assert lines[0].startswith("Worse than SFT + temperature beyond noise: CoLS + temperature (")
    table = difference_table(scaled, 500)
    assert table.rows[0][0] == "CoLS minus SFT" and "with its temperature" in table.header[0]


def test_one_seed_says_that_training_noise_is_not_covered():
    comparisons, lines = judge(seed_of({"sft": 2.5, "cols": 1.0}))
    assert "without the noise of training" in difference_table(comparisons, 500).note
    assert any("another training seed" in line for line in lines)


def test_under_five_seeds_every_seed_is_shown_and_nothing_is_claimed():
    seeds = [seed_of({"sft": 2.5, "cols": 1.0}, seed=s, n=200) for s in range(3)]
    comparisons, lines = judge(*seeds)
    table = difference_table(comparisons, 200)
    cells = table.rows[0][1].split()
    expected = [p["cols"].nll.mean() - p["sft"].nll.mean() for p, _ in seeds]
    assert [float(cell) for cell in cells] == pytest.approx(expected, abs=5e-4)
    assert "beyond noise" not in table.header
    assert not any("Better" in line for line in lines)
    assert lines[0].startswith("3 seeds are too few")


def test_five_seeds_allow_claims_again():
    seeds = [seed_of({"sft": 2.5, "ls": 1.5, "cols": 1.0}, seed=s, n=200) for s in range(5)]
    _, lines = judge(*seeds)
    assert any(line.startswith("Better than SFT beyond noise: LS on all data") for line in lines)
    assert not any("another training seed" in line for line in lines)


def test_a_single_method_is_compared_with_nothing():
    comparisons, lines = judge(seed_of({"cols": 2.5}))
    assert comparisons == []
    assert lines == []
    assert difference_table(comparisons, 500) is None


def test_the_difference_table_shows_differences_of_means():
    predictions, _ = seed = seed_of({"sft": 2.5, "cols": 1.0})
    comparisons, _ = judge(seed)
    (row,) = difference_table(comparisons, 500).rows
    assert row[0] == "CoLS minus SFT"
    for cell, field in ((row[1], "nll"), (row[2], "brier")):
        expected = getattr(predictions["cols"], field) - getattr(predictions["sft"], field)
        assert float(cell.split()[0]) == pytest.approx(expected.mean(), abs=5e-4)


def test_brier_of_the_synthetic_rows_is_scikit_learns():
    probs, answers = option_probs(200, 2.0)
    predictions, _ = answered(2.0, n=200)
    oracle = brier_score_loss(answers, probs, labels=list(range(8)), scale_by_half=False)
    assert predictions.brier.mean() == pytest.approx(oracle, abs=1e-12)


def test_repeats_of_a_question_make_no_finding_surer():
    """200 questions four times each compare as the 200 do."""

    def copies(predictions, times):
        fields = ("ids", "correct", "confidence", "nll", "brier")
        made = {name: np.tile(getattr(predictions, name), times) for name in fields}
        return Predictions(**made, clusters=np.arange(200 * times) % 200)

    predictions, _ = seed_of({"sft": 1.3, "ls": 1.2}, n=200)
    once, clustered, apart = (
        compare([{key: make(p) for key, p in predictions.items()}], resamples=400)[0].differences
        for make in (
            lambda p: copies(p, 1),
            lambda p: copies(p, 4),
            lambda p: replace(copies(p, 4), clusters=None),
        )
    )
    for metric, d in once.items():
        assert clustered[metric].low == pytest.approx(d.low, abs=1e-9)
        assert clustered[metric].p_value == d.p_value
    width = {name: d["NLL"].high - d["NLL"].low for name, d in (("o", once), ("a", apart))}
    assert width["a"] < 0.7 * width["o"]
