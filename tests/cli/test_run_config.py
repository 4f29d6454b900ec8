"""From the command line to the methods a run trains."""

import re
from dataclasses import replace

import pytest

from cogcalib_jax.cli.run_config import RunConfig, settle_comparison
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.errors import FieldError, UserError
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.models.placement import Placement
from cogcalib_jax.report.text import short_name
from cogcalib_jax.settings import identity


@pytest.fixture
def load(tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text("compare: [sft, cols, ls]\nmethod:\n  weight: 0.3\n  space: options\n")

    def load(*argv):
        loaded = load_config(
            RunConfig, argv, prog="train.py", description="", default_preset=preset
        )
        return settle_comparison(loaded)

    return load


def test_a_presets_comparison_stands_alone_and_shares_its_settings(load):
    config = load("--training.epochs", "2")
    assert config.compare == ("sft", "cols", "ls")
    assert load("--compare", "sft,mbls").compare == ("sft", "mbls")


def test_any_explicit_method_turns_the_presets_comparison_off(load):
    for option in (("--method.name", "combls"), ("--method.weight", "0.5")):
        assert load(*option).compare == ()


def test_a_comparison_and_a_method_on_one_command_line_contradict_each_other(load):
    with pytest.raises(UserError, match=r"--compare and --method\.name contradict"):
        load("--compare", "sft,cols", "--method.name", "cols")


@pytest.mark.parametrize(
    "entries",
    [
        "sft,colz",
        "cols,cols",
        "cols,cols=0.5",
        "cols=-1",
        "cols=much",
        "sft,ensemble,ensemble",
        "sft,mc_dropout=0.3",
        "mc_dropout,ensemble",
        "ls@somehow",
        "none@known",
        "ls@unknown=-1",
        "cols,ls@adaptive",
    ],
)
def test_impossible_comparisons_are_refused(load, entries):
    with pytest.raises(UserError, match="compare"):
        load("--compare", entries)


def test_a_comparison_names_terms_and_gates_of_their_own(load):
    methods = load("--compare", "sft,ls@unknown,ecp@random=0.2").resolved_methods()
    assert list(methods) == ["sft", "ls-unknown", "ecp-random"]
    assert (methods["ls-unknown"].term, methods["ls-unknown"].gate) == ("ls", "unknown")
    assert (methods["ls-unknown"].weight, methods["ecp-random"].weight) == (0.3, 0.2)


def test_where_a_run_lies_is_no_part_of_what_it_is(load):
    one = identity(load("--run-dir", "a"))
    assert one == identity(load("--run-dir", "b", "--resume"))
    assert one != identity(load("--run-dir", "a", "--seed", "1"))


def test_another_task_needs_a_base(load):
    with pytest.raises(UserError, match=r"model\.path"):
        load("--data.task", "openbookqa")


def test_sampling_baselines_stand_beside_the_losses(load):
    config = load("--compare", "ensemble,sft,cols=0.2,mc_dropout")
    assert list(config.resolved_methods()) == ["sft", "cols"]
    assert list(config.baselines) == ["ensemble", "mc_dropout"]
    assert load().baselines == {}


def test_settings_stand_in_a_baselines_folder_where_two_have_its_name(load):
    specs = "sft,blob,tfb(tolerance=1e-5),tfb(criterion=flips)"
    found = load("--compare", specs).baselines
    assert list(found) == ["blob", "tfb-tolerance=1e-05", "tfb-criterion=flips"]
    assert [found[key].tolerance for key in list(found)[1:]] == [1e-5, 0]
    assert [found[key].most for key in list(found)[1:]] == [1e-5, 0.1]
    assert short_name("tfb-tolerance=1e-05") == "TFB (tolerance 1e-05)"
    for wrong, words in {
        "sft,tfb(criterion=flips,tolerance=1.5)": "tolerance is 1.5; expected a share below 1",
        "sft,tfb(of=ls)": "of is ls; expected sft or best_epoch",
        "sft,tfb,tfb(steps=6)": "must name each method once",
        "sft,tfb(sigma=1)": "tfb has no setting 'sigma'",
        "tfb,blob": "must name a method beside tfb and blob",
        "sft,tfb=0.3": "tfb",
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            load("--compare", wrong)


@pytest.mark.parametrize(
    ("baseline", "lora"),
    [
        ("laplace_lora", {"use_dora": True}),
        ("blob", {"use_dora": True}),
        ("laplace_lora", {"placement": Placement(("q_proj",), modules_to_save=("lm_head",))}),
        ("blob", {"placement": Placement(("q_proj",), layers_to_transform=(1,))}),
    ],
)
def test_a_posterior_over_a_and_b_is_refused_where_there_is_more_or_less(load, baseline, lora):
    config = load("--compare", f"sft,{baseline}")
    with pytest.raises(FieldError, match=f"compare: must not name {baseline}"):
        replace(config, lora=replace(config.lora, **lora))
    replace(config, lora=replace(config.lora, use_rslora=True))


def test_a_member_of_an_ensemble_differs_in_its_training_alone(load):
    plain = load("--compare", "sft,ensemble").as_plain_finetuning()
    members = [replace(plain, ensemble_member=k) for k in range(6)]
    assert members[0].training_seed == plain.seed == members[5].seed
    assert len({member.training_seed for member in members}) == 6
    assert plain.method.term == "none" and plain.compare == ()
    with pytest.raises(UserError, match="ensemble_member"):
        load("--ensemble-member", "1")
    assert load("--ensemble-member", "1", "--method.name", "sft").ensemble_member == 1


def test_the_calibrator_of_a_run_is_checked_with_its_settings():
    with pytest.raises(FieldError, match="calibrator: must be a calibrator: .*did you mean platt"):
        EvaluationConfig(calibrator="plat")
    with pytest.raises(FieldError, match="l2 is -1; expected a number of at least 0"):
        EvaluationConfig(calibrator="vector(l2=-1)")
    assert EvaluationConfig(calibrator="vector(l2=0.1)").calibrator == "vector(l2=0.1)"


def test_a_checkpoint_of_an_earlier_release_is_one_of_the_default_calibrator():
    plain = RunConfig()
    assert "calibrator" not in identity(plain)["evaluation"]
    other = replace(plain, evaluation=EvaluationConfig(calibrator="platt"))
    assert identity(other)["evaluation"]["calibrator"] == "platt"
