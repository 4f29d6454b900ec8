"""One field of a run says how options are scored; whatever reads a run or an adapter follows it."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cogcalib_jax.cli.eval_config import load_evaluation
from cogcalib_jax.cli.predict import predicting_calibrator
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.cli.stored import read_choice
from cogcalib_jax.cli.train import require_prefix, settle_option_score
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.errors import UserError
from cogcalib_jax.inference.config import stored_option_score
from cogcalib_jax.settings import identity
from cogcalib_jax.training.config import require_same_identity
from tests.inference.test_option_choice import made

BASE = ("--model.path", "base")


def config(*argv) -> RunConfig:
    return load_config(RunConfig, [*BASE, *argv], prog="", description="").config


def evaluation(*argv):
    return load_evaluation(list(map(str, argv)), prog="", description="")


def run_folder(folder, *argv, old=None, task="custom"):
    """A finished run as far as its config goes; with `old`, one that was written before the field
    had its name."""
    run = config("--data.task", task, "--data.path", "rows", *argv)
    text = to_yaml(run)
    if old is not None:
        text = text.replace(f"option_score: {run.option_score}\n", "")
        text = text.replace("evaluation:\n", f"evaluation:\n  normalisation: {old}\n")
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    return folder


def adapter(folder, **content):
    folder.mkdir(parents=True)
    base = {"base": {"hash": "0", "name": "base"}}
    (folder / "calibration.json").write_text(json.dumps(base | content))
    return folder


def test_the_default_is_the_mean_for_training_and_for_a_base_alone():
    assert config().option_score == "mean"
    assert evaluation(*BASE).option_score == "mean"


def test_training_with_pmi_is_refused_with_the_way_to_it():
    with pytest.raises(UserError, match=r"option_score = pmi: .*eval\.py --run RUN --option-score"):
        config("--option-score", "pmi")
    assert evaluation(*BASE, "--option-score", "pmi").option_score == "pmi"


def test_an_evaluation_chooses_no_rule():
    with pytest.raises(UserError, match="option_score = auto: must be mean, sum, chars or pmi"):
        evaluation(*BASE, "--option-score", "auto")


def test_dropout_passes_have_no_prior():
    with pytest.raises(UserError, match="mc_passes"):
        evaluation(*BASE, "--option-score", "pmi", "--mc-passes", "3")


@pytest.mark.parametrize(("old", "rule"), [("sum", "sum"), ("token_mean", "mean")])
def test_the_old_name_is_read_wherever_users_wrote_it(old, rule, tmp_path, capsys):
    preset = tmp_path / "preset.yaml"
    preset.write_text(f"evaluation:\n  normalisation: {old}\n")
    assert config("--config", str(preset)).option_score == rule
    assert config("--evaluation.normalisation", old).option_score == rule
    assert evaluation(*BASE, "--evaluation.normalisation", old).option_score == rule
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 3
    assert all("evaluation.normalisation is now option_score" in note for note in notes)


def test_the_old_name_beside_another_rule_is_refused():
    with pytest.raises(UserError, match="contradict"):
        config("--evaluation.normalisation", "sum", "--option-score", "mean")


@pytest.mark.parametrize(("old", "rule"), [("sum", "sum"), ("token_mean", "mean")])
def test_old_runs_keep_their_rule_without_a_word(old, rule, tmp_path, capsys):
    folder = run_folder(tmp_path / "run", old=old)
    assert evaluation("--run", folder).option_score == rule
    assert evaluation("--run", folder, "--option-score", "none").option_score == rule
    assert evaluation("--run", folder, "--option-score", "chars").option_score == "chars"
    assert capsys.readouterr().err == ""


def test_old_checkpoints_belong_to_the_run_they_were_made_by(tmp_path):
    now = identity(replace(config(), option_score="sum"))
    old = json.loads(json.dumps(now))
    del old["option_score"]
    old["evaluation"]["normalisation"] = "sum"
    require_same_identity(tmp_path, old, now)
    with pytest.raises(UserError, match="option_score is 'mean' but it was started with 'sum'"):
        require_same_identity(tmp_path, old, identity(config()))


def test_runs_with_different_rules_are_compared_only_by_a_given_one(tmp_path):
    runs = [run_folder(tmp_path / r, "--option-score", r) for r in ("mean", "sum")]
    with pytest.raises(UserError, match="option_score is 'sum'.*give --option-score for both"):
        evaluation("--run", *runs)
    assert evaluation("--run", *runs, "--option-score", "chars").option_score == "chars"


def test_a_run_that_chose_its_rule_is_read_with_it(tmp_path):
    folder = run_folder(tmp_path / "run", "--option-score", "auto")
    with pytest.raises(UserError, match="option_score.json: cannot be read"):
        evaluation("--run", folder)
    (folder / "option_score.json").write_text('{"option_score": "chars"}')
    assert evaluation("--run", folder).option_score == "chars"
    (folder / "option_score.json").write_text('{"option_score": "auto"}')
    with pytest.raises(UserError, match="names no rule"):
        read_choice(folder)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"option_score": "chars"}, "chars"),
        ({"normalisation": "sum"}, "sum"),
        ({"normalisation": "token_mean"}, "mean"),
        ({}, "mean"),
        ({"option_score": None}, "mean"),
    ],
)
def test_adapters_bring_their_rule(content, rule, tmp_path):
    folder = adapter(tmp_path / "adapter", **content)
    assert evaluation(*BASE, "--adapter", folder).option_score == rule
    assert evaluation(*BASE, "--adapter", "none", folder).option_score == rule
    # A merged model holds the file too.
    assert evaluation("--model.path", folder).option_score == rule
    assert evaluation(*BASE, "--adapter", folder, "--option-score", "pmi").option_score == "pmi"


def test_adapters_with_different_rules_need_a_given_one(tmp_path):
    first = adapter(tmp_path / "a", option_score="sum")
    second = adapter(tmp_path / "b", option_score="mean")
    foreign = tmp_path / "c"
    foreign.mkdir()
    assert evaluation(*BASE, "--adapter", first, foreign).option_score == "sum"
    with pytest.raises(UserError, match="sum in .*mean in .*give --option-score"):
        evaluation(*BASE, "--adapter", first, second)


def test_a_temperature_belongs_to_the_rule_it_was_fitted_by(tmp_path, capsys):
    fitted = {"value": 1.5, "rows": 40}
    folder = adapter(tmp_path / "a", option_score="mean", temperature=fitted)
    assert predicting_calibrator(str(folder), "mean").calibrator.temperature_ == 1.5
    assert predicting_calibrator(str(folder), "sum") is None
    assert "no fitted temperature for option_score sum" in capsys.readouterr().err
    old = adapter(tmp_path / "old", normalisation="sum", temperature=fitted)
    assert predicting_calibrator(str(old), "sum").calibrator.temperature_ == 1.5


def test_damaged_names_of_rules_count_as_none():
    assert stored_option_score({"option_score": ["mean"]}) is None
    assert stored_option_score({"option_score": "best"}) is None


def test_pmi_needs_a_token_to_begin_with():
    without = SimpleNamespace(is_open=False, pmi_prefix_ids=None)
    require_prefix("mean", [without])
    with pytest.raises(UserError, match="neither a BOS nor an end-of-text token"):
        require_prefix("pmi", [without])


def test_a_choice_is_made_once_a_run(tmp_path):
    sets = {"calibration": made("sum"), "validation": made("sum", seed=1)}
    asked = []

    def predictor(start, predictions):
        asked.append(start)
        return predictions

    trainer = SimpleNamespace(predictor=predictor, splits=sets)
    rule, line = settle_option_score(trainer, "start", tmp_path, 0)
    assert rule == "sum" and asked == ["start", "start"]
    number = r"\d+\.\d{3}"
    assert re.search(rf"mean {number}, sum {number}, chars {number}", line) and "\n" not in line
    stored = json.loads((tmp_path / "option_score.json").read_text())
    assert stored["option_score"] == "sum"
    assert np.isfinite([one["validation_nll"] for one in stored["tried"].values()]).all()
    # Resumed, with other predictions: the choice stands.
    trainer.splits = {"calibration": made("mean"), "validation": made("mean", seed=1)}
    assert settle_option_score(trainer, "start", tmp_path, 0)[0] == "sum"
    assert len(asked) == 2
