"""Tuning recommends by validation alone, and the simplest of what cannot be told apart."""

import shutil

import numpy as np
import pytest

from cogcalib_jax.configlib import from_yaml
from cogcalib_jax.errors import UserError
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.runs.config import RunConfig
from cogcalib_jax.studies import trying
from cogcalib_jax.studies import tune as tune_module
from cogcalib_jax.studies.__main__ import main
from cogcalib_jax.studies.choosing import BEST_EPOCH, SFT, TEMPERATURE, Candidate, recommend
from cogcalib_jax.training.validation import Belief
from tests.inference.quick import quick_compilation
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
    assert "With so few seeds intervals hold" in text
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


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")), pytest.MonkeyPatch.context() as m:
        m.setattr(tune_module, "share_compiled_steps", lambda folder: None)  # one for all tests
        yield


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    words = arguments(write_base(folder / "base"), folder / "unused")
    place = words.index("--run-dir")
    del words[place : place + 2]
    more = ["--seeds", "0,1", "--terms", "ls", "--gates", "adaptive", "--weights", "0.5"]
    return ["tune", *words, *more]


@pytest.fixture(scope="module")
def tuned(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    main([*command, "--out", str(folder / "out")])
    return folder / "out"


def contents(folder, pattern):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.glob(pattern)}


@pytest.mark.slow
def test_the_command_writes_what_was_tried_and_a_preset_that_runs(tuned):
    text = (tuned / "tune.md").read_text()
    for name in ("sft, 2 epochs", "sft, best epoch", "cols, weight 0.5"):
        assert name in text
    (preset,) = tuned.glob("*.yaml")
    config = from_yaml(RunConfig, preset.read_text(), preset)
    assert config.compare == () and config.resolved_methods() and config.run_dir is None
    assert "# Recommended on validation questions" in preset.read_text()
    assert len((tuned / "tune.jsonl").read_text().splitlines()) % 2 == 0
    assert not list(tuned.glob("seed-*/*/*@*")), "weights of candidates are not kept"


def test_what_is_finished_is_not_trained_again(command, tuned, monkeypatch):
    monkeypatch.setattr(trying, "open_run", lambda *_: pytest.fail("trained again"))
    before = contents(tuned, "tune*") | contents(tuned, "*.yaml")
    main([*command, "--out", str(tuned)])
    assert contents(tuned, "tune*") | contents(tuned, "*.yaml") == before


def test_an_interrupted_tuning_goes_on_and_finds_the_same_bits(
    command, tuned, tmp_path, monkeypatch
):
    trained = []

    def finetune(*words):
        trained.append(words[-1].name)
        result = trying_finetune(*words)
        if len(trained) == 2:
            raise KeyboardInterrupt  # before what it believes was written down
        return result

    trying_finetune = trying.finetune
    monkeypatch.setattr(trying, "finetune", finetune)
    again = [*command, "--seeds", "0", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        main(again)
    main(again)
    assert trained == ["sft", "ls@adaptive=0.5", "ls@adaptive=0.5"]
    kept = contents(tmp_path, "seed-0/*/tried/*.json")
    assert len(kept) == 2
    assert kept == contents(tuned, "seed-0/*/tried/*.json")
    ours = (tuned / "tune.jsonl").read_text().splitlines()
    assert (tmp_path / "tune.jsonl").read_text().splitlines() == ours[: len(ours) // 2]


def test_more_candidates_cost_only_their_own_training(command, tuned, capsys):
    more = [*command, "--weights", "0.5,1", "--epochs", "2", "--out", str(tuned)]
    main([*more, "--dry-run"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "min" in line]
    states = {(row[0], row[2]): row[3] for row in rows}
    for seed in ("0", "1"):
        assert states[seed, "sft"] == states[seed, "ls@adaptive=0.5"] == "finished"
        assert states[seed, "ls@adaptive=1.0"] == "to"


def test_a_folder_of_another_config_is_refused(command, tuned):
    with pytest.raises(UserError, match="lora.r is 4"):
        main([*command, "--lora.r", "4", "--out", str(tuned)])


def test_a_damaged_belief_is_named(command, tuned, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tuned, out)
    file = next(out.glob("seed-1/*/tried/sft.json"))
    file.write_text(file.read_text()[:50])
    with pytest.raises(UserError, match="sft.json: damaged"):
        main([*command, "--out", str(out)])


def test_a_dry_run_lists_what_is_tried_and_writes_nothing(command, tmp_path, capsys):
    main([*command, "--dry-run", "--out", str(tmp_path / "new")])
    text = capsys.readouterr().out
    assert text.count("to do") == 4 and "ls@adaptive=0.5" in text and " min" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seeds", "100", "seeds = 100"),
        ("--seeds", "0,0", "seeds = 0,0: must name each once"),
        ("--weights", "0", "weights = 0: must be finite numbers above 0"),
        ("--weights", "inf", "weights = inf: must be finite numbers above 0"),
        ("--epochs", "0", "epochs = 0: must be finite numbers above 0"),
        ("--gates", "oracle", "gates = oracle: cannot be oracle"),
        ("--gates", "nosuch", "gate is .nosuch.; expected one of all, "),
        ("--compare", "sft", "--compare has no meaning for tuning"),
        ("--run-dir", "x", "--run-dir has no meaning for tuning; everything lies in the folder"),
    ],
)
def test_what_must_not_be_tuned_is_refused(option, value, message):
    with pytest.raises(UserError, match=message):
        main(["tune", option, value])


def test_an_out_that_is_a_file_is_refused_before_anything_is_trained(command, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        main([*command, "--out", str(tmp_path / "file")])


def test_candidates_are_trained_on_the_rows_that_a_run_would_take(command, tmp_path, monkeypatch):
    rows = []

    def finetune(trainer, *_):
        rows.append(trainer.splits["train"])
        raise KeyboardInterrupt

    monkeypatch.setattr(trying, "finetune", finetune)
    known = ["--composition.known-share", "1", "--composition.by", "world"]
    with pytest.raises(KeyboardInterrupt):
        main([*command, *known, "--out", str(tmp_path)])
    assert all(row.example.extra["known"] for row in rows[0])
