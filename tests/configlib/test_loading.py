"""What a preset and a command line make of a config."""

import math
from pathlib import Path

import pytest

from cogcalib_jax.configlib.loading import from_yaml, given_values, load_config
from cogcalib_jax.errors import UserError
from tests.configlib.example import Adapter, Config, Method, Model, load, nested, refusal


def test_without_preset_and_arguments_the_defaults_stand():
    loaded = load()
    assert loaded.config == Config()
    assert loaded.explicit == frozenset()
    assert loaded.preset is None


def test_the_command_line_is_laid_over_the_preset(preset):
    path = preset("seed: 3\nmodel:\n  adapter: {rank: 16}\n  path: base\n")
    loaded = load("--model.adapter.rank", "32", "--name=x", preset=path)
    assert loaded.config.model == Model(Adapter(rank=32, scale=1.0), path="base")
    assert (loaded.config.seed, loaded.config.name) == (3, "x")
    assert loaded.explicit == {"model.adapter.rank", "name"}
    assert loaded.preset == path


def test_config_option_replaces_the_default_preset(preset, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("seed: 5")
    for argv in (["--config", str(other)], [f"--config={other}"]):
        loaded = load(*argv, preset=preset("seed: 3\nname: x"))
        assert loaded.config == Config(seed=5)
        assert loaded.preset == other
        assert loaded.explicit == frozenset()


def test_a_default_preset_that_is_not_there_is_needed_by_a_run_and_not_by_help(tmp_path, capsys):
    absent = tmp_path / "configs" / "world.yaml"
    with pytest.raises(SystemExit) as stop:
        load("--help", preset=absent)
    assert stop.value.code == 0 and "--seed" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"choose a preset with --config FILE, such as"):
        load(preset=absent)
    own = tmp_path / "own.yaml"
    own.write_text("seed: 5")
    assert load("--config", str(own), preset=absent).config.seed == 5


def test_a_section_keeps_the_defaults_its_owner_gave_it():
    assert load("--model.adapter.rank", "2").config.model.adapter == Adapter(rank=2, scale=1.0)
    assert from_yaml(Config, "model: {adapter: {rank: 2}}", "p").model.adapter.scale == 1.0


def test_values_derived_in_a_sections_post_init_do_not_contradict_an_override():
    assert load("--method.term", "ecp").config.method == Method(term="ecp")


@pytest.mark.parametrize("key", ["run-dir", "run_dir"])
def test_hyphens_and_underscores_are_the_same_in_keys(key):
    expected = Config(run_dir=Path("runs/x-1"))
    loaded = load(f"--{key}", "runs/x-1")
    assert loaded.config == expected
    assert loaded.explicit == {"run_dir"}
    assert from_yaml(Config, f"{key}: runs/x-1", "p") == expected


@pytest.mark.parametrize(
    ("path", "written", "value"),
    [
        ("seed", "12", 12),
        ("seed", "-1", -1),
        ("seed", "1_000", 1000),
        ("seed", "010", 10),  # not octal
        ("method.weight", "1e-4", 1e-4),  # PyYAML takes it for text
        ("method.weight", "3", 3.0),
        ("method.weight", ".5", 0.5),
        ("method.weight", ".inf", math.inf),
        ("method.weight", "none", None),
        ("method.weight", "null", None),
        ("method.term", "none", "none"),  # a word of the Literal, not the absent value
        ("method.term", "null", None),
        ("model.path", "none", None),
        ("name", "on", "on"),
        ("name", "1e5", "1e5"),
        ("name", "true", "true"),
        ("name", "2026-11-01", "2026-11-01"),
        ("resume", "true", True),
        ("resume", "False", False),
        ("run_dir", "a/b", Path("a/b")),
        ("compare", "sft,ls,cols", ("sft", "ls", "cols")),
        ("compare", "sft, ls", ("sft", "ls")),
        ("compare", "sft", ("sft",)),
        ("compare", "[sft, ls]", ("sft", "ls")),
        ("compare", "[]", ()),
        ("buckets", "8,16", (8, 16)),
        ("betas", "0.9,1", (0.9, 1.0)),
        ("limit", "12", 12),
        ("limit", "auto", "auto"),
        ("devices", "8", 8),
    ],
)
def test_preset_and_command_line_read_the_same_words_alike(path, written, value):
    told = load(f"--{path}", written).config
    written_down = from_yaml(Config, nested(path, written), "p.yaml")
    for config in (told, written_down):
        for part in path.split("."):
            config = getattr(config, part)
        assert config == value
        assert type(config) is type(value)


def test_a_bare_flag_is_true_and_takes_no_other_option_for_its_value():
    config = load("--resume", "--seed", "3").config
    assert (config.resume, config.seed) == (True, 3)
    assert load("--seed", "3", "--resume").config.resume is True
    assert load("--resume", "false").config.resume is False
    assert load("--resume=false").config.resume is False


def test_values_may_start_with_a_hyphen_and_hold_an_equals_sign():
    assert load("--seed", "-3").config.seed == -3
    assert load("--name", "a=b").config.name == "a=b"
    assert load("--name=--a=b").config.name == "--a=b"


def test_an_empty_word_is_empty_text_or_an_empty_list():
    assert load("--name=").config.name == ""
    assert load("--compare", "").config.compare == ()


def test_the_last_of_two_equal_options_counts():
    assert load("--seed", "1", "--seed=2").config.seed == 2


@pytest.mark.parametrize("text", ["", "# only a comment\n", "model:\n  # all commented out\n"])
def test_an_empty_preset_or_section_leaves_the_defaults(text):
    assert from_yaml(Config, text, "p.yaml") == Config()


def test_a_preset_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_bytes("seed: 4".encode("utf-8-sig"))
    assert load(preset=path).config.seed == 4


def test_a_quoted_scalar_is_text_and_never_a_number():
    assert from_yaml(Config, "name: '5'", "p.yaml").name == "5"
    assert refusal("seed: '5'") == 'p.yaml:1: seed = "5": must be a whole number'


def test_an_override_mends_a_bad_value_of_the_preset(preset):
    path = preset("seed: many\nmodel: {adapter: {rank: 0}}\n")
    config = load("--seed", "1", "--model.adapter.rank", "2", preset=path).config
    assert (config.seed, config.model.adapter.rank) == (1, 2)
    with pytest.raises(UserError, match="seed = many"):
        load("--model.adapter.rank", "2", preset=path)
    with pytest.raises(UserError, match="rank = 0"):
        load("--seed", "1", preset=path)


def test_the_items_of_a_list_may_stand_apart():
    for argv in (["--compare", "sft", "cols"], ["--compare", "sft,cols"], ["--compare=sft,cols"]):
        assert load(*argv, "--seed", "4").config == Config(compare=("sft", "cols"), seed=4)


def test_a_start_stands_for_what_is_given_nowhere(preset):
    start = Config(seed=8, name="start", model=Model(Adapter(rank=3), path="base"))
    argv = ["--config", str(preset("name: x\nmodel: {adapter: {scale: 5}}")), "--model.path", "y"]
    loaded = load_config(Config, argv, prog="", description="", start=start)
    assert loaded.config == Config(seed=8, name="x", model=Model(Adapter(3, 5.0), path="y"))


def test_given_values_are_those_of_preset_and_command_line_with_their_types(preset):
    path = str(preset("seed: 3\nmodel: {adapter: {rank: -1}}"))
    given = given_values(Config, ["--config", path, "--run-dir", "r", "--compare", "sft"])
    assert given == {
        "seed": 3,
        "model.adapter.rank": -1,  # a range is no type
        "run_dir": Path("r"),
        "compare": ("sft",),
    }
