"""What the start knows by its answers in another form: stored once, and told by NLL and by
confidence over training."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from transformers import AutoTokenizer

import train
from cogcalib_jax.cli.method_run import (
    KNOWN_FILE,
    SCORES,
    _stored_form,
    known_rows,
    read_known,
    store_known,
)
from cogcalib_jax.cli.questions import in_other_form
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.data.config import DataConfig
from cogcalib_jax.data.encoding import encode_split
from cogcalib_jax.data.example import Example
from cogcalib_jax.data.loading import load_splits
from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.report.load_run import read_run
from cogcalib_jax.studies import main
from cogcalib_jax.studies.detector_results import COURSE, FORM
from cogcalib_jax.studies.suite_results import training_tables
from cogcalib_jax.training.log import Followed
from cogcalib_jax.world.config import FactsConfig, MadeSettings
from cogcalib_jax.world.facts import wordings
from tests.cli.small_base import WORLD, arguments, write_base
from tests.data.chats import chat_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    more = ["--compare", "sft", "--known-by", "wording", "--training.probe-rows", "10"]
    train.main(arguments(base, folder, *more))
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(run):
    """split -> its questions in another wording"""
    splits = load_splits(DataConfig(), 0, made=MadeSettings(world=WORLD))
    tokenizer = AutoTokenizer.from_pretrained(run / "start_adapter")
    sets = {n: encode_split(n, rows, tokenizer, DataConfig())[0] for n, rows in splits.items()}
    del sets["style"]
    config = RunConfig(world=WORLD, known_by="wording")
    return sets, in_other_form(config, tokenizer, sets), tokenizer


def test_over_training_it_is_told_by_nll_and_confidence(run):
    lines = lines_of(run / "sft" / SCORES)
    assert [(x["step"], x["data"]) for x in lines] == [
        (step, data) for step in (2, 5, 8) for data in ("validation", "train")
    ]
    splits = load_splits(DataConfig(), 0, made=MadeSettings(world=WORLD))
    rows = {"validation": splits.validation, "train": splits.train[:10]}
    stored = {(x["data"], x["id"]): x["correct"] for x in lines_of(run / KNOWN_FILE)}
    for line in lines:
        known = [stored[line["data"], row.id] for row in rows[line["data"]]]
        assert line["known"] == known
        followed = [
            x
            for x in lines_of(run / "sft" / "dynamics.jsonl")
            if (x["step"], x["data"]) == (line["step"], line["data"])
        ]
        for name, values in (("nll", line["nll"]), ("confidence", line["confidence"])):
            mean = sum(x["n"] * x[name] for x in followed) / sum(x["n"] for x in followed)
            assert mean == pytest.approx(np.mean(values))
    tables = training_tables({0: read_run(run)}, ("sft",))
    table = tables[f"{COURSE}: SFT"]
    shown = {(row[0], row[2]): row[3:] for row in table.rows}
    for line in lines:
        words = "trained on" if line["data"] == "train" else "not trained on"
        for score, text in zip(
            (-np.array(line["nll"]), line["confidence"]),
            shown[words, str(line["step"])],
            strict=True,
        ):
            if len(set(line["known"])) < 2:
                assert text == "-"
                continue
            area, low, high = map(float, re.findall(r"[\d.]+", text))
            assert area == pytest.approx(roc_auc_score(line["known"], score), abs=6e-4)
            assert low <= area <= high


def test_it_is_asked_once_and_also_of_a_run_that_began_without_it(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / KNOWN_FILE
    file.write_text(before := file.read_text().replace("0.", "0.0", 1))
    train.main(["--resume", "--run-dir", str(copy)])
    assert file.read_text() == before
    assert {line["form"] for line in lines_of(file)} == {"wording"}
    file.unlink()
    (copy / "sft" / SCORES).unlink()
    train.main(["--resume", "--run-dir", str(copy)])
    assert file.read_text() == (run / KNOWN_FILE).read_text()
    # What was not recorded from the first update on is not recorded at all.
    assert not (copy / "sft" / SCORES).is_file()


def test_a_resumed_run_keeps_its_form(tmp_path):
    (tmp_path / KNOWN_FILE).write_text('{"form": "cloze", "data": "test"}\n')
    config = RunConfig(known_by="wording")
    resumed = SimpleNamespace(folder=tmp_path, known={"test": ()}, config=config)
    with pytest.raises(UserError, match="known_by is wording; expected cloze, the form in which"):
        store_known(resumed, None)
    # Answers that do not name their form are asked for again.
    (tmp_path / KNOWN_FILE).write_text('{"data": "test"}\n')
    assert _stored_form(tmp_path / KNOWN_FILE) is None


def test_a_row_that_was_not_asked_is_not_known(run, tmp_path):
    rows = asked(run)[0]["validation"][:3]
    text = [{"data": "validation", "id": rows[1].id, "correct": True}]
    text.append({"data": "test", "id": rows[0].id, "correct": True})
    (tmp_path / KNOWN_FILE).write_text("\n".join(map(json.dumps, text)))
    followed = Followed("validation", rows, np.zeros(3, bool))
    assert known_rows(tmp_path, followed) == {"known": [0, 1, 0]}
    assert read_known(tmp_path / "none", "test") == {}
    assert known_rows(tmp_path / "none", followed) == {}


@pytest.mark.slow
def test_the_detector_takes_it_in_place_of_slick(base, tmp_path):
    words = arguments(base, tmp_path / "unused", "--known-by", "wording", "--seeds", "0")
    at = words.index("--run-dir")
    main(["detector", *words[:at], *words[at + 2 :], "--folder", str(tmp_path / "out")])
    results = lines_of(tmp_path / "out" / "results.jsonl")
    lines = lines_of(tmp_path / "out" / "seed-0" / "sft" / SCORES)
    by_form = {(x["data"], x["step"]): x for x in results if x["target"] == FORM}
    assert len(by_form) == len(lines) == 6
    for line in lines:
        found = by_form[line["data"], line["step"]]
        assert (found["n"], found["positives"]) == (len(line["known"]), sum(line["known"]))
        for name, score in (
            ("auroc", -np.array(line["nll"])),
            ("auroc_of_confidence", line["confidence"]),
        ):
            area = (
                roc_auc_score(line["known"], score) if 0 < found["positives"] < found["n"] else None
            )
            assert found[name] == (area if area is None else pytest.approx(area))
    assert not any("SliCK" in x["target"] for x in results)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "SliCK" not in text and f"### {COURSE}" in text
    assert "right at the start in another form" in text and "known by exposure" in text


def test_facts_are_asked_in_a_wording_that_nobody_else_uses():
    data = DataConfig(task="invented_facts")
    made = MadeSettings(
        facts=FactsConfig(train=24, test=24, validation=24, calibration=24, style=24)
    )
    splits = load_splits(data, 0, made=made)
    tokenizer = chat_tokenizer(None)
    sets = {n: encode_split(n, rows, tokenizer, data)[0] for n, rows in splits.items()}
    config = RunConfig(data=data, model=ModelConfig("base"), known_by="wording")
    forms = {"train": "AC", "calibration": "CB", "validation": "CB", "test": "BC"}
    for name, rows in in_other_form(config, tokenizer, sets).items():
        before, after = forms.get(name, "AC")
        for row, own in zip(rows, sets[name], strict=True):
            texts = dict(zip("ABC", wordings(own.example), strict=True))
            assert own.example.question == texts[before].question
            assert row.example.question == texts[after].question


@pytest.mark.parametrize(
    ("task", "prompt", "known_by", "allowed"),
    [
        ("openbookqa", "cloze", "cloze", "letters, qa, chat"),
        ("openbookqa", "auto", "letters", "cloze, qa, chat"),
        ("openbookqa", "cloze", "wording", "letters, qa, chat"),
        ("world", "auto", "form_b", "letters, qa, chat, wording"),
    ],
)
def test_another_form_than_the_runs_own_is_asked_for(task, prompt, known_by, allowed):
    with pytest.raises(FieldError, match=re.escape(f"(allowed: {allowed})")):
        RunConfig(
            data=DataConfig(task=task, prompt=prompt), model=ModelConfig("base"), known_by=known_by
        )


def test_open_questions_are_refused():
    data = DataConfig(task="custom", path="rows.jsonl")
    tokenizer = chat_tokenizer(None)
    example = Example(id="1", question="who", choices=("a",), answer=0, aliases=("a",))
    rows, _ = encode_split("train", [example], tokenizer, data)
    config = RunConfig(data=data, model=ModelConfig("base"), known_by="cloze")
    with pytest.raises(UserError, match="known_by is cloze; expected none for custom"):
        in_other_form(config, tokenizer, {"train": rows})
