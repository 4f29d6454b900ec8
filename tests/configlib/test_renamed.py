"""An old name of a field is read wherever the new one is, and refused where they contradict."""

import pytest

from cogcalib_jax.configlib.loading import from_yaml
from cogcalib_jax.settings import _RENAMED, TAKEN, rename, with_new_names
from tests.configlib.example import Config, load, nested, refusal

OLD = "model.old_term"


@pytest.fixture(autouse=True)
def old_name():
    before = dict(_RENAMED)
    rename(OLD, "method.term", {"smoothing": "ls"})
    yield
    _RENAMED.clear()
    _RENAMED.update(before)


@pytest.mark.parametrize(("written", "read"), [("smoothing", "ls"), ("ecp", "ecp")])
def test_a_preset_and_a_command_line_may_use_it(written, read, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(nested(OLD, written))
    by_preset = load(preset=tmp_path / "p.yaml")
    assert f"p.yaml:2: {OLD} is now method.term (read as {read})" in capsys.readouterr().err
    by_option = load("--model.old-term", written)
    error = capsys.readouterr().err
    assert error.startswith("note: command line:") and error.count("\n") == 1
    assert by_preset.config.method.term == by_option.config.method.term == read
    assert by_option.explicit == {"method.term"}


def test_stored_configs_are_read_without_a_note(capsys):
    assert from_yaml(Config, nested(OLD, "smoothing"), "config.yaml").method.term == "ls"
    assert capsys.readouterr().err == ""


def test_one_name_in_the_preset_and_the_other_on_the_command_line_is_an_override(tmp_path):
    (tmp_path / "old.yaml").write_text(nested(OLD, "smoothing"))
    (tmp_path / "new.yaml").write_text(nested("method.term", "ls"))
    assert load("--method.term", "ecp", preset=tmp_path / "old.yaml").config.method.term == "ecp"
    assert load("--model.old-term", "ecp", preset=tmp_path / "new.yaml").config.method.term == "ecp"


def test_both_names_with_one_meaning_are_no_contradiction():
    both = nested(OLD, "smoothing") + "\n" + nested("method.term", "ls")
    assert from_yaml(Config, both, "p.yaml").method.term == "ls"
    options = ("--method.term", "ls", "--model.old-term", "smoothing")
    assert load(*options).config.method.term == "ls"


@pytest.mark.parametrize("backwards", [False, True])
def test_both_names_with_two_meanings_are_refused(backwards):
    lines = [nested(OLD, "smoothing"), nested("method.term", "ecp")]
    options = [("--model.old-term", "smoothing"), ("--method.term", "ecp")]
    if backwards:
        lines, options = lines[::-1], options[::-1]
    assert "contradict each other (ls, ecp); keep method.term" in refusal("\n".join(lines))
    message = refusal(None, *options[0], *options[1])
    assert "contradict each other; keep --method.term" in message


def test_a_bad_value_is_refused_under_the_new_name():
    assert "method.term = nonsense: must be one of" in refusal(nested(OLD, "nonsense"))


def test_what_a_run_stored_gets_its_new_names():
    stored = {"model": {"old_term": "smoothing", "path": None}, "seed": 3}
    kept = {"model": {"path": None}, "seed": 3, "method": {"term": "ls"}}
    assert with_new_names(stored) == kept
    assert with_new_names(kept) == kept
    assert stored["model"]["old_term"] == "smoothing"
    assert with_new_names({"seed": 3}) == {"seed": 3}


@pytest.fixture
def taken(monkeypatch):
    monkeypatch.setitem(TAKEN, "model.depth", 0.001)


def test_what_is_no_field_any_more_is_read_with_the_value_it_always_has(taken, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(nested("model.depth", "0.001"))
    assert load(preset=tmp_path / "p.yaml").config == Config()
    assert capsys.readouterr().err == ""
    assert with_new_names({"model": {"depth": 0.001}}) == {"model": {}}


def test_another_value_of_it_is_refused(taken):
    assert refusal(nested("model.depth", "2")).endswith(
        ":2: model.depth = 2: is always 0.001 now; delete the line"
    )
    other = {"model": {"depth": 2}}
    assert with_new_names(other) == other
