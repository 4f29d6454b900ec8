"""Tuning recommends by validation alone, and the simplest of what cannot be told apart."""

import numpy as np
import pytest

from cogcalib_jax.configlib import from_yaml
from cogcalib_jax.errors import UserError
from cogcalib_jax.experiments.__main__ import main
from cogcalib_jax.experiments.tune import BEST_EPOCH, SFT, TEMPERATURE, Candidate, recommend
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.training.validation import Belief
from tests.runs.small_base import arguments, write_base

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


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    words = arguments(write_base(folder / "base"), folder / "unused")
    place = words.index("--run-dir")
    del words[place : place + 2]
    more = ["--seeds", "0,1", "--terms", "ls", "--gates", "adaptive", "--weights", "0.5"]
    main(["tune", *words, *more, "--out", str(folder / "out")])
    return folder / "out"


def test_the_command_writes_what_was_tried_and_a_preset_that_runs(tuned):
    text = (tuned / "tune.md").read_text()
    for name in ("sft, 2 epochs", "sft, best epoch", "cols, weight 0.5"):
        assert name in text
    (preset,) = tuned.glob("*.yaml")
    config = from_yaml(RunConfig, preset.read_text(), preset)
    assert config.compare == () and config.resolved_methods()
    assert "# Recommended on validation questions" in preset.read_text()
    assert len((tuned / "tune.jsonl").read_text().splitlines()) % 2 == 0


@pytest.mark.parametrize(
    ("option", "value"), [("--seeds", "100"), ("--weights", "0"), ("--gates", "oracle")]
)
def test_what_must_not_be_tuned_is_refused(option, value):
    with pytest.raises(UserError, match=option[2:]):
        main(["tune", option, value])
