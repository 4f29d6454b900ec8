"""`auto` keeps the mean per token unless another rule is better beyond its interval."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from cogcalib_jax.inference.posthoc import choose_option_score
from cogcalib_jax.inference.predictions import Predictions


def made(rule, n=300, seed=0, noise=0.0, options=4) -> Predictions:
    """Answers drawn from the softmax of scores by `rule` (None: of nothing), for options of 1 to 9
    tokens and of about four characters a token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 10, (n, options))
    characters = tokens * 4 + rng.integers(-3, 4, tokens.shape)
    scores = rng.normal(0, 2, tokens.shape)
    lengths = {"mean": tokens, "sum": np.ones_like(tokens), "chars": characters}
    logprobs = scores * lengths.get(rule, tokens) - 30 * lengths.get(rule, tokens)
    logits = 0 * scores if rule is None else scores
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    answers = np.array([rng.choice(options, p=p) for p in probs])
    logprobs = logprobs + noise * rng.normal(size=tokens.shape)
    return Predictions(logprobs, tokens, answers, "mean", characters=characters)


@pytest.mark.parametrize("rule", ["mean", "sum", "chars"])
def test_the_rule_that_answers_were_drawn_by_is_found(rule):
    choice = choose_option_score(made(rule), made(rule, seed=1), seed=0)
    assert choice.option_score == rule
    assert min(choice.tried, key=lambda one: choice.tried[one].nll) == rule
    assert choice.record()["option_score"] == rule


@pytest.mark.parametrize("seed", range(5))
def test_noise_leaves_the_mean(seed):
    """Answers that no rule predicts: whichever is lower by chance stays within its interval."""
    calibration, validation = made(None, seed=2 * seed), made(None, seed=2 * seed + 1)
    assert choose_option_score(calibration, validation, seed).option_score == "mean"


def test_its_numbers_are_those_of_an_independent_computation():
    calibration, validation = made("sum"), made("sum", seed=1)
    choice = choose_option_score(calibration, validation, seed=0)

    def losses(predictions, scores, temperature):
        scaled = scores / temperature
        rows = np.arange(len(scaled))
        return np.log(np.exp(scaled - scaled[rows, predictions.answers][:, None]).sum(-1))

    for rule, divisor in (("mean", "tokens"), ("sum", None), ("chars", "characters")):
        by = [
            p.logprobs / (getattr(p, divisor) if divisor else 1) for p in (calibration, validation)
        ]
        fitted = minimize_scalar(
            lambda log_t, by=by: losses(calibration, by[0], np.exp(log_t)).mean(),
            bounds=(-4.6, 4.6),
            method="bounded",
            options={"xatol": 1e-9},
        )
        temperature = np.exp(fitted.x)
        assert choice.tried[rule].temperature == pytest.approx(temperature, rel=1e-4)
        wanted = losses(validation, by[1], temperature).mean()
        assert choice.tried[rule].nll == pytest.approx(wanted, rel=1e-5)


def test_single_tokens_need_no_choice():
    tokens = np.ones((6, 2), int)
    one = Predictions(np.log(np.full((6, 2), 0.4)), tokens, np.zeros(6, int), "mean")
    choice = choose_option_score(one, one, seed=0)
    assert (choice.option_score, choice.tried) == ("mean", {})
    assert "one token" in choice.reason


def test_single_tokens_of_different_lengths_are_compared():
    """Characters divide one token, too: " Asia" and " Antarctica" change places."""
    long = made("chars")
    one = replace(long, tokens=np.ones_like(long.tokens))
    later = replace(made("chars", seed=1), tokens=one.tokens)
    assert choose_option_score(one, later, seed=0).option_score == "chars"
    same = replace(one, characters=np.full_like(one.tokens, 4))
    assert not choose_option_score(same, same, seed=0).tried


def test_without_a_mistake_on_the_calibration_split_the_mean_stays():
    calibration, validation = made("sum"), made("sum", seed=1)
    by_mean = calibration.logprobs / calibration.tokens
    perfect = replace(calibration, answers=by_mean.argmax(-1))
    choice = choose_option_score(perfect, validation, seed=0)
    assert choice.option_score == "mean" and "answered correctly" in choice.reason
