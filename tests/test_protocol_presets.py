"""Presets of published set-ups: the recipe their sources state, and honest about the rest."""

from pathlib import Path

import pytest

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.data.prompts import PROTOCOLS

CONFIGS = Path(__file__).resolve().parents[1] / "configs/protocols"
TRAINED_ON = (
    *("openbookqa", "arc_challenge", "arc_easy"),
    *("winogrande_s", "winogrande_m", "boolq"),
)
# protocol -> steps, learning rate, warm-up, LoRA dropout, in the published scripts.
PUBLISHED = {
    "bayesian_peft": (5000, 1e-4, 0.06, 0.0),
    "laplace_lora": (10_000, 5e-5, 0.0, 0.1),
}


def load(protocol: str, *more: str) -> RunConfig:
    argv = ["--config", str(CONFIGS / f"{protocol}.yaml"), *more]
    return load_config(RunConfig, argv, prog="train.py", description="").config


def test_each_protocol_has_its_preset():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(PROTOCOLS) == set(PUBLISHED)


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_a_preset_opens_with_command_needs_expectation_and_source(protocol):
    lines = (CONFIGS / f"{protocol}.yaml").read_text(encoding="utf-8").splitlines()
    comment = [line[1:].strip() for line in lines[: lines.index("data:")]]
    header = " ".join(comment)
    assert f"python train.py --config configs/protocols/{protocol}.yaml" in header
    for words in ("Needs:", "Expect:", "Facts:", "at commit", "Not run by us on real weights."):
        assert words in header


@pytest.mark.parametrize("protocol", PUBLISHED)
@pytest.mark.parametrize("task", TRAINED_ON)
def test_a_preset_is_the_published_recipe_for_every_task(protocol, task):
    config = load(protocol, "--data.task", task)
    steps, learning_rate, warmup, dropout = PUBLISHED[protocol]
    training, lora = config.training, config.lora
    assert (config.data.protocol, config.data.max_length) == (protocol, 300)
    assert training.finetune_steps(400) == training.finetune_steps(9000) == steps
    assert (training.batch_size, training.accumulation, training.schedule) == (4, 1, "linear")
    assert (training.learning_rate, training.warmup_fraction) == (learning_rate, warmup)
    assert (training.weight_decay, training.style_updates(400)) == (0.0, 0)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16.0, dropout)
    assert lora.target_modules == ("q_proj", "v_proj", "lm_head")
    assert (config.method.resolve().term, config.loss.space) == ("none", "options")
    assert config.evaluation.bins == 15
