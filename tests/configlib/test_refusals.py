"""What is refused, and the one line it is refused with."""

import re
from dataclasses import dataclass

import pytest

from cogcalib_jax.errors import FieldError, check
from tests.configlib.example import Adapter, load, nested, refusal


@pytest.mark.parametrize(
    ("path", "written", "reason"),
    [
        ("seed", "eight", "must be a whole number"),
        ("seed", "8.0", "must be a whole number"),
        ("seed", "true", "must be a whole number"),
        ("seed", "9" * 20, "must be a whole number"),
        ("resume", "yes", "must be true or false"),
        ("resume", "1", "must be true or false"),
        ("devices", "4", "must be one of 1, 2, 8"),
        ("limit", "all", "must be one of auto, or a whole number"),
        ("method.term", "lss", "must be one of none, ls, ecp, or none"),
        ("method.weight", "nan", "must be a number, or none"),
        ("method.weight", "-1", "must be at least 0, or none"),
        ("model.adapter.rank", "0", "must be at least 1"),
        ("model.adapter.rank", "65", "must be at most 64 on one device"),
        ("buckets", "8,x", "must be a list with commas between, each a whole number (item 2 is x)"),
        ("compare", "a,,b", "must be a list with commas between, each text (item 2 is none)"),
        ("betas", "0.9", "must be 2 values with commas between: a number, a number"),
    ],
)
def test_both_sources_are_told_the_same_error(path, written, reason):
    shown = f"{path} = {written}: {reason}"
    assert refusal(None, f"--{path}", written) == f"command line: {shown}"
    assert refusal(nested(path, written)) == f"p.yaml:{path.count('.') + 1}: {shown}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name:", "p.yaml:1: name = none: must be text"),
        ("name: [a]", "p.yaml:1: name = a: must be text"),
        ("seed: {a: 1}", "p.yaml:1: seed = {a: 1}: must be a whole number"),
        ("buckets: [1, [2]]", "p.yaml:1: buckets = 1,2: must be a list with commas between, each a "
         "whole number (item 2 is 2)"),
        ("run_dir: ''", 'p.yaml:1: run_dir = "": must be a path, or none'),
        ("model: 3", "p.yaml:1: model = 3: is a section; write its fields below it (adapter, "
         "path)"),
        ('run_dir: "a\\0b"', 'p.yaml:1: run_dir = "a\\u0000b": must be without the character NUL, '
         "which no file name holds"),
        ('name: "\\ud800 x"', 'p.yaml:1: name = "\\ud800 x": must be text in UTF-8, '
         "without bytes of another encoding or half a character"),
        ("name: " + "[" * 10_000, "p.yaml: not a valid preset: nested too deeply; no field "
         "needs it"),
        ("seed: 1\nname: x\nseed: 2", "p.yaml:3: seed is given twice; keep one of them"),
        ("run_dir: a\nrun-dir: b", "p.yaml:2: run_dir is given twice; keep one of them"),
        ("model: {path: a}\nmodel: {path: b}", "p.yaml:2: model is given twice; keep one of them"),
        ("sed: 1", "p.yaml:1: unknown key sed; did you mean seed?"),
        ("name: x\nrank: 1", "p.yaml:2: unknown key rank; did you mean model.adapter.rank?"),
        ("model:\n  adaptor: {}", "p.yaml:2: unknown key model.adaptor; did you mean "
         "model.adapter?"),
        ("qqq: 1", "p.yaml:1: unknown key qqq; --help lists every field"),
        ("model.path: x", "p.yaml:1: model.path must be written as nested sections, a field to a "
         "line"),
        ("? [a]\n: 1", "p.yaml:1: a key must be the name of a field"),
        ("- seed", "p.yaml: must be a mapping of fields (field: value), one to a line"),
        ("seed: !!int 3", "p.yaml:1: not a valid preset: tags (tag:yaml.org,2002:int) are not "
         "supported; correct it"),
        ("name: &a x\nrun_dir: *a", "p.yaml:2: not a valid preset: aliases (*name) are not "
         "supported; correct it"),
    ],
)  # fmt: skip
def test_bad_presets_are_told_with_file_and_line(text, message):
    assert refusal(text) == message


@pytest.mark.parametrize("text", ["a: b: c", "seed: [1", "\tseed: 1", "a: 1\n---\na: 2", "a: \x07"])
def test_what_is_not_yaml_is_told_with_the_file(text):
    assert re.match(r"p\.yaml(:\d+)?: not a valid preset: .", refusal(text))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sed", "1"], "unknown key sed; did you mean seed?"),
        (["--model.adapter.rnak=1"], "unknown key model.adapter.rnak; did you mean "
         "model.adapter.rank?"),
        (["--seed.x", "1"], "unknown key seed.x; did you mean seed?"),
        (["--model", "x"], "model is a section; give one of its fields: --model.adapter.rank, "
         "--model.adapter.scale, --model.adapter.targets, --model.path"),
        (["--seed"], "--seed needs a value: a whole number"),
        (["--seed", "--resume"], "--seed needs a value: a whole number"),
        (["--config"], "--config needs a value: a preset file"),
        (["--config="], "--config needs a value: a preset file"),
        (["seed=1"], 'unexpected argument "seed=1"; options are written --section.field value '
         "(--help lists them)"),
        (["-seed", "1"], 'unexpected argument "-seed"; options are written --section.field value '
         "(--help lists them)"),
        (["--name", "x" * 99, "--seed", "y" * 99], f"seed = {'y' * 77}...: must be a whole number"),
        (["--name", "caf\udce9"], 'name = "caf\\udce9": must be text in UTF-8, '
         "without bytes of another encoding or half a character"),
        (["--buckets", "1,\udce9"], 'buckets = "1,\\udce9": must be text in UTF-8, '
         "without bytes of another encoding or half a character"),
        (["--config", "\udce9.yaml"], 'config = "\\udce9.yaml": must be text in UTF-8, '
         "without bytes of another encoding or half a character"),
        (["--seed", "a\nb"], 'seed = "a\\nb": must be a whole number'),
    ],
)  # fmt: skip
def test_bad_command_lines_are_told_in_one_line(argv, message):
    assert refusal(None, *argv) == f"command line: {message}"


def test_a_check_over_two_fields_names_the_one_it_blames_even_when_it_is_a_default():
    @dataclass(frozen=True)
    class Small:
        width: int = 8
        parts: int = 4

        def __post_init__(self) -> None:
            check(self.width % self.parts == 0, "parts", f"must divide width ({self.width})")

    assert refusal("width: 6", cls=Small) == "default: parts = 4: must divide width (6)"


def test_a_required_field_that_nobody_gave_is_named():
    @dataclass(frozen=True)
    class Base:
        path: str

    @dataclass(frozen=True)
    class Root:
        base: Base

    assert refusal("", cls=Root) == (
        "base.path: is required; give --base.path TEXT, or set it in a preset"
    )
    assert load("--base.path", "x", cls=Root).config == Root(Base("x"))


def test_files_that_cannot_be_read_are_named(tmp_path):
    missing, binary = tmp_path / "missing.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff")
    for path, reason in [
        (missing, "cannot be read (No such file or directory); choose a preset with --config FILE"),
        (tmp_path, "cannot be read (Is a directory); choose a preset with --config FILE"),
        (binary, "not UTF-8 (byte 6); save the file as UTF-8"),
    ]:
        assert refusal(None, "--config", str(path)) == f"{path}: {reason}"
    near = tmp_path / "mising.yaml"
    near.write_text("name: x")
    assert f"did you mean {near}? Else choose a" in refusal(None, "--config", str(missing))


def test_options_in_the_style_of_other_programs_are_shown_as_they_are_written_here():
    for argv in (["--set", "seed=3"], ["--set=seed=3"]):
        assert refusal(None, *argv).endswith("options are written --section.field value: --seed 3")


def test_a_dataclass_built_in_code_raises_the_same_check():
    with pytest.raises(FieldError, match="^rank: must be at least 1$") as caught:
        Adapter(rank=0)
    assert caught.value.field == "rank"
