"""The recommendation goes by validation alone, to the simplest of equals."""

import numpy as np

from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.studies.tune import BEST_EPOCH, SFT, TEMPERATURE, Candidate, recommend
from cogcalib_jax.training.log import Belief

N, SEEDS = 400, 3
PLAIN = Candidate(SFT, 4, MethodConfig(name="sft").resolve())
STOPPED = Candidate(BEST_EPOCH, 4, None)
SCALED = Candidate(TEMPERATURE, 4, None)
LS = Candidate("ls, weight 0.3", 4, MethodConfig(name="ls").resolve())
COLS = Candidate("cols, weight 0.3", 4, MethodConfig(name="cols").resolve())


def beliefs(shift, spread=0.02, accuracy=0.6):
    """NLL of the same questions, moved by `shift`."""
    made = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        hard = rng.gamma(2, 0.5, N)
        noise = np.random.default_rng([seed, int(1e4 * abs(shift))]).normal(0, spread, N)
        correct = (np.arange(N) < accuracy * N).astype(float)
        made.append(Belief(correct, np.full(N, accuracy), hard + shift + noise, None))
    return made


def test_the_lowest_nll_beyond_noise_is_recommended():
    chosen, text = recommend({PLAIN: beliefs(0.5), LS: beliefs(0.3), COLS: beliefs(0.1)}, SEEDS)
    assert chosen == COLS
    assert "Recommended: cols, weight 0.3, 4 epochs, the lowest validation NLL" in text
    assert "With so few seeds, intervals hold" in text
    five = {c: [*b, *b[:2]] for c, b in ((PLAIN, beliefs(0.5)), (COLS, beliefs(0.1)))}
    assert "so few seeds" not in recommend(five, 5)[1]


def test_a_tie_goes_to_the_simplest():
    found = {COLS: beliefs(0.1), LS: beliefs(0.101, 0.3), SCALED: beliefs(0.102, 0.3)}
    chosen, text = recommend(found | {PLAIN: beliefs(0.5)}, SEEDS)
    assert chosen == SCALED
    assert "cannot be told from the lowest validation NLL (cols" in text


def test_the_best_of_many_candidates_is_still_found():
    found = {PLAIN: beliefs(3.0), COLS: beliefs(0.1)}
    for number in range(70):
        found[Candidate(f"ls, weight {number}", 4, LS.method)] = beliefs(1.0 + number / 100)
    assert recommend(found, SEEDS)[0] == COLS


def test_without_a_difference_nothing_is_claimed():
    chosen, text = recommend({PLAIN: beliefs(0.1, 0.5), COLS: beliefs(0.099, 0.5)}, SEEDS)
    assert chosen == PLAIN
    assert text.count("No difference detectable at this n (400 questions, 3 seed(s))") == 1


def test_accuracy_may_not_be_sold_for_nll():
    found = {PLAIN: beliefs(0.5), COLS: beliefs(0.0, accuracy=0.58), STOPPED: beliefs(0.2)}
    chosen, text = recommend(found, SEEDS)
    assert chosen == STOPPED
    assert "accuracy too low" in text


def test_a_candidate_that_lacks_a_seed_is_left_out():
    found = {PLAIN: beliefs(0.5), SCALED: beliefs(0.0)[:2], COLS: beliefs(0.3)}
    assert recommend(found, SEEDS)[0] == COLS
