"""What `import cogcalib_jax` offers: documented names, and nothing else."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import cogcalib_jax as cc

NAMES = [name for name in dir(cc) if not name.startswith("_")]


def test_only_public_names_are_shown():
    assert set(NAMES) == set(cc.__all__)
    assert {"Model", "Task", "finetune", "Method", "Calibrator", "metrics"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring(name):
    thing = getattr(cc, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        own = inspect.getmembers(thing, inspect.isfunction)
        bare = [n for n, f in own if not n.startswith("_") and not inspect.getdoc(f)]
        assert not bare, f"{name}: {bare}"


def test_every_public_name_stands_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    missing = [name for name in NAMES if f"::: cogcalib_jax.{name}\n" not in page]
    assert missing == ["Method"] and "heading: Method\n" in page


def test_importing_it_brings_no_jax():
    code = "import sys, cogcalib_jax; print('jax' in sys.modules, cogcalib_jax.__version__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[0] == "False"


def test_the_library_itself_says_nothing_and_warnings_go_to_logging():
    code = (
        "import cogcalib_jax.console as c; c.say('a line'); c.warn('a warning');"
        " c.progress_bar(1, 'title', 'step').update()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "" and "a line" not in shown.stderr
    assert shown.stderr.splitlines()[-1].endswith("a warning")


def test_every_error_for_users_is_of_one_family():
    assert issubclass(cc.FieldError, cc.UserError)
    with pytest.raises(cc.UserError, match="learning_rate"):
        cc.TrainingConfig(learning_rate=-1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: cc.TrainingConfig(schedule="cosin"), "schedule: 'cosin' is not one of linear, co"),
        (lambda: cc.TrainingConfig(nonfinite="ignore"), "nonfinite: .*one of stop, skip"),
        (lambda: cc.LossConfig(space="option"), "space: .*one of vocab, options"),
        (lambda: cc.Method(space="option"), "space: .*one of vocab, options"),
        (lambda: cc.Task.from_rows([{}], answers="texts"), "answers: .*one of text, letter"),
        (lambda: cc.Task.from_rows([{}], answers_from=2), "answers_from: 2 is not one of 0, 1"),
        (lambda: cc.Task.from_rows([{}], on_bad_row="ignore"), "on_bad_row: .*one of error, skip"),
        (lambda: cc.Task.from_rows([{}], shared_groups="remove"), "shared_groups: .*keep, drop"),
        (lambda: cc.Model.from_pretrained("x", dtype="fp16"), "dtype: .*one of auto, float32"),
        (lambda: cc.Model.from_pretrained("x", quantise="int4"), "quantise: .*none, int8, nf4"),
        (lambda: cc.Model.from_pretrained("x", remat="some"), "remat: .*none, layer, dots"),
    ],
)
def test_a_word_that_is_none_of_a_settings_words_is_refused(make, told):
    with pytest.raises(cc.FieldError, match=told):
        make()
