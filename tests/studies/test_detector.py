"""The gate's NLL as a detector: the command from end to end, its numbers against scikit-learn."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cogcalib_jax.cli.method_run import SCORES
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.predictions import write_rows
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.studies import detector as detector_module
from cogcalib_jax.studies import main
from cogcalib_jax.studies.detector import scores
from cogcalib_jax.studies.detector_report import write_results
from cogcalib_jax.studies.detector_results import (
    CATEGORIES,
    EXPOSURES,
    HELD_OUT,
    LABELS,
    NOW,
    NUMBERS,
    SLICK,
    START,
    TRAINED,
    UNKNOWN,
    auroc_of,
    auroc_table,
    read_watched,
    tidy_rows,
)
from cogcalib_jax.training.finetune import Watch, finetune, style_phase
from cogcalib_jax.training.storage import Journal
from tests.cli.small_base import arguments, write_base
from tests.training.small_trainer import TRAINING, lora, splits, trainer


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    words = arguments(write_base(folder / "base"), folder / "unused")
    place = words.index("--run-dir")
    del words[place : place + 2]
    more = ["--seeds", "1", "--methods", "sft,cols", "--method.weight", "0.5"]
    return ["detector", *words, *more, "--folder", str(folder / "out")], folder / "out"


@pytest.fixture(scope="module")
def finished(command):
    main(command[0])
    return command[1]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_number_is_scikit_learns_of_what_was_written_down(finished):
    results = rows_of(finished / "results.jsonl")
    assert {(r["seed"], r["method"]) for r in results} == {(1, "sft"), (1, "cols")}
    place = finished / "seed-1"
    labels = [x for x in rows_of(place / LABELS) if x["data"] == HELD_OUT]
    lines = [x for x in rows_of(place / "cols" / SCORES) if x["data"] == HELD_OUT]
    steps = [line["step"] for line in lines]
    assert steps == [2, 5, 8]  # two updates of style, and the ends of two epochs of three
    nll = -np.array(lines[-1]["nll"])
    right_at_start = np.array(lines[0]["correct"])
    slick = np.array([x["slick"] for x in labels])
    wanted = {
        EXPOSURES: (np.array([x["known"] for x in labels]), nll),
        START: (right_at_start, nll),
        NOW: (np.array(lines[-1]["correct"]), nll),
        SLICK: (slick != UNKNOWN, nll),
    }
    for name in CATEGORIES[:3]:
        rows = np.isin(slick, (name, UNKNOWN))
        wanted[name] = (slick[rows] == name, nll[rows])
    got = {
        r["target"]: r
        for r in results
        if (r["seed"], r["method"], r["data"], r["step"]) == (1, "cols", HELD_OUT, 8)
    }
    assert set(got) == set(wanted)
    for target, (truth, score) in wanted.items():
        assert (got[target]["n"], got[target]["positives"]) == (len(truth), truth.sum())
        one_class = len(set(truth.tolist())) < 2
        area = None if one_class else pytest.approx(roc_auc_score(truth, score))
        assert got[target]["auroc"] == area
    called = -nll <= lines[-1]["threshold"]
    known = wanted[EXPOSURES][0]
    assert got[START]["called_known"] == pytest.approx(called.mean())
    assert got[START]["called_known_of_known"] == pytest.approx(called[known].mean())
    assert got[START]["called_known_of_unknown"] == pytest.approx(called[~known].mean())


def test_methods_share_their_start_and_the_runs_threshold_is_the_one_used(finished):
    place = finished / "seed-1"
    first = [rows_of(place / method / SCORES)[0] for method in ("sft", "cols")]
    assert first[0] == first[1]
    fits = [x for x in rows_of(place / "cols" / "metrics.jsonl") if x.get("phase") == "refit"]
    used = [x["threshold"] for x in rows_of(place / "cols" / SCORES) if x["data"] == TRAINED]
    assert used == [fit["threshold"] for fit in fits]


def test_tables_and_pictures_are_written(finished):
    text = (finished / "results.md").read_text()
    assert "    cogcalib study detector --" in text
    for words in ("known by exposure", "SliCK: known of any kind", "## SFT", "## CoLS"):
        assert words in text
    for picture in ("auroc_sft.png", "auroc_cols.png"):
        assert f"(plots/{picture})" in text
        assert (finished / "plots" / picture).stat().st_size > 10_000


def test_a_finished_seed_is_not_run_again_and_a_begun_one_goes_on(command, finished, monkeypatch):
    before = (finished / "results.jsonl").read_text()
    whole = (finished / "seed-1" / "cols" / SCORES).read_text()
    # As if killed in the last method, after its last checkpoint.
    (finished / "seed-1" / NUMBERS).unlink()
    labels = (finished / "seed-1" / LABELS).stat().st_mtime_ns
    seen = []
    open_run = detector_module.open_run

    def watched(config, *rest):
        seen.append(config.seed)
        return open_run(config, *rest)

    monkeypatch.setattr(detector_module, "open_run", watched)
    main(command[0])
    assert seen == [1]
    assert (finished / "seed-1" / LABELS).stat().st_mtime_ns == labels
    assert (finished / "seed-1" / "cols" / SCORES).read_text() == whole
    assert (finished / "results.jsonl").read_text() == before


def test_a_dry_run_lists_the_seeds_and_runs_nothing(command, finished, tmp_path, capsys):
    new = ["--folder", str(tmp_path / "new"), "--seeds", "0,1", "--dry-run", "true"]
    main([*command[0], *new])
    text = capsys.readouterr().out
    assert text.count("to do") == 2 and "sft, cols" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1,1"], "seeds"),
        (["--shots", "0"], "shots"),
        (["--methods", "ensemble"], "methods"),
        (["--methods", "nothing"], "compare"),
        (["--composition.known-share", "0.5"], "known_share"),
        (["--training.probe-rows", "0"], "probe_rows"),
    ],
)
def test_mistakes_are_found_before_anything_runs(command, words, message):
    with pytest.raises(UserError, match=message):
        main([*command[0], *words])


def test_a_folder_that_is_a_file_is_refused_before_anything_runs(command, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        main([*command[0], "--folder", str(tmp_path / "file")])


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """The folder of a tiny trainer that learnt its twenty questions by heart, watched; rows do not
    say what is known."""
    folder = tmp_path_factory.mktemp("memorised") / "seed-0"
    long = replace(TRAINING, epochs=24, learning_rate=3e-2, validate_every=20, refit_every=20)
    long = replace(long, probe_rows=len(splits()["train"]))
    made = trainer(long, 100)
    rows = {TRAINED: splits()["train"], HELD_OUT: splits()["validation"]}
    start = style_phase(made, lora(), folder / "style")
    watch = Watch(Journal(folder / "sft" / SCORES), partial(scores, made, folder))
    sft = MethodConfig(name="sft").resolve()
    finetune(made, sft, start, folder / "style", folder / "sft", watch)
    nothing = {"known": None, "exposure": None}
    labels = [
        {"data": data, "id": row.id, "slick": CATEGORIES[i % 4]} | nothing
        for data, encoded in rows.items()
        for i, row in enumerate(encoded)
    ]
    write_rows(folder / LABELS, labels)
    return folder


@pytest.fixture(scope="module")
def learnt(memorised):
    return read_watched(memorised, "sft")


@pytest.mark.slow
def test_memorised_questions_no_longer_show_what_was_known(learnt):
    trained = learnt[TRAINED]
    first, last = trained.moments[0], trained.moments[-1]
    assert last.correct.mean() > 0.9 > first.correct.mean()
    at_start, at_end = (auroc_of(trained.target(START, m)) for m in (first, last))
    assert at_start > 0.9
    assert at_end < at_start - 0.2
    # The share of what was wrong at the start that is called known: few, then nearly all.
    assert trained.rates[0, 1] < 0.5 < 0.9 < trained.rates[-1, 1]


def test_without_exposures_nothing_is_compared_with_them(learnt):
    seeds = {0: learnt}
    assert learnt[TRAINED].target(EXPOSURES, learnt[TRAINED].moments[0]) is None
    assert not any("exposure" in row[0] for row in auroc_table(seeds).rows)


def test_a_report_without_exposures_says_so(memorised):
    folder = memorised.parent
    write_rows(memorised / NUMBERS, tidy_rows(0, memorised, ("sft",)))
    text = write_results(folder, "cogcalib ...", {0: memorised}, ("sft",), folder / "copy.md")
    assert "The rows do not record how often the base read a fact" in text
    assert (folder / "copy.md").read_text() == text
    assert (folder / "plots" / "roc_sft.png").is_file()
