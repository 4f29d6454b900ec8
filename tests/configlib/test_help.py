"""The help is complete and readable."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from cogcalib_jax.configlib.loading import field_docs
from tests.configlib.example import load


def help_text(capsys, monkeypatch, *argv: str, preset: Path | None = None) -> str:
    monkeypatch.setenv("COLUMNS", "200")  # so that no doc line is broken
    with pytest.raises(SystemExit) as stop:
        load(*argv, "--help", preset=preset)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_field_with_type_default_and_doc(capsys, monkeypatch):
    shown = help_text(capsys, monkeypatch)
    assert "prog.py" in shown and "Does it." in shown
    for option, kind, doc, default in [
        ("config", "FILE", "Preset: a name, or a YAML file. Other options override it.", "none"),
        ("name", "TEXT", "Name of the run.", "run"),
        ("seed", "INT", "Seed.", "0"),
        ("resume", "[true|false]", "Continue.", "false"),
        ("run-dir", "PATH|none", "Where to write.", "none"),
        ("compare", "TEXT,...", "Methods to compare.", "[]"),
        ("buckets", "INT,...", "Lengths.", "32,64"),
        ("betas", "FLOAT,FLOAT", "AdamW.", "0.9,0.999"),
        ("limit", "{auto}|INT", "A number or a word.", "auto"),
        ("devices", "{1,2,8}", "Devices.", "1"),
        ("model.adapter.rank", "INT", "Rank of the update.", "4"),
        ("model.adapter.scale", "FLOAT", "Its scale; a doc line over two lines.", "1.0"),
        ("model.adapter.targets", "TEXT,...", "Projections that get an adapter.", "q_proj,v_proj"),
        ("model.path", "TEXT|none", "Folder or Hub name.", "none"),
        ("method.term", "{none,ls,ecp}|none", "Calibration term.", "none"),
        ("method.weight", "FLOAT|none", "Its weight.", "none"),
    ]:
        line = rf"--{re.escape(option)} {re.escape(kind)}[\s│]+{re.escape(doc)} "
        assert re.search(line + re.escape(f"(default: {default})"), shown), option


def test_help_shows_the_presets_defaults_even_where_they_are_bad(capsys, monkeypatch, preset):
    path = preset("seed: many\ncompare: [sft, ls]\nmodel: {adapter: {rank: 0}}")
    monkeypatch.chdir(path.parent)  # a longer name would be broken over lines
    shown = help_text(capsys, monkeypatch, "--config", path.name)
    assert f"(default: {path.name})" in shown
    assert "Seed. (default: many)" in shown
    assert "Methods to compare. (default: sft,ls)" in shown
    assert "Rank of the update. (default: 0)" in shown


def test_help_fits_a_narrow_terminal(capsys, monkeypatch):
    help_text(capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        load("--help")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_docs_of_a_base_class_are_inherited():
    assert field_docs(Derived) == {"base": "From below.", "own": "From here."}


@dataclass(frozen=True)
class Underlying:
    base: int = 0
    """From below."""


@dataclass(frozen=True)
class Derived(Underlying):
    own: int = 0
    """From here."""
