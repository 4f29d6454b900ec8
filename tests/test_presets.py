"""Every preset: readable as it stands, honest in its header, of the recipe it names."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.models.families import from_hf
from cogcalib_jax.studies.suite import SuiteConfig, cells

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SUITES = sorted((CONFIGS / "suites").glob("*.yaml"))
PRESETS = sorted(CONFIGS.glob("*.yaml"))
# Presets of models too large for our machines -> (shape, parameters, task).
PUBLISHED = {
    "llama3_8b_openbookqa": ("llama3-8b", 8_030_261_248, "openbookqa"),
    "qwen2.5_7b_winogrande_m": ("qwen2.5-7b", 7_615_616_512, "winogrande_m"),
    "mistral_7b_boolq": ("mistral-7b-v0.1", 7_241_732_096, "boolq"),
}
PARAMETERS = {shape: count for shape, count, _ in PUBLISHED.values()} | {
    "llama3-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
}
NOT_IN_A_PRESET = {
    "stories260k_openbookqa": ["--model.path", "BASE"],
    "own_questions": ["--model.path", "BASE", "--data.path", "FOLDER"],
}


def load(preset: Path) -> RunConfig:
    argv = ["--config", str(preset), *NOT_IN_A_PRESET.get(preset.stem, [])]
    return load_config(RunConfig, argv, prog="train.py", description="").config


def header(preset: Path) -> str:
    """The comment a preset opens with, as running text."""
    lines = []
    for line in preset.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return " ".join(lines)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_loads_and_opens_with_command_needs_and_expectation(preset):
    config = load(preset)
    assert config.resolved_methods()
    text = header(preset)
    command = "python train.py"
    if preset.stem != "world":
        command += f" --config configs/{preset.name}"
    assert command in text
    assert "Needs:" in text
    assert "Expect:" in text or preset.stem == "world"


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_of_published_models_follow_the_recipe_and_say_what_was_not_run(name):
    preset = CONFIGS / f"{name}.yaml"
    _, _, task = PUBLISHED[name]
    assert "Not run by us on real weights." in header(preset)
    config = load(preset)
    assert (config.data.task, config.data.path, config.data.max_length) == (task, None, 300)
    assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (8, 16.0, 0.0)
    assert config.lora.target_modules == ("q_proj", "v_proj", "lm_head")
    training = config.training
    assert (training.learning_rate, training.schedule, training.warmup_fraction) == (
        1e-4,
        "linear",
        0.06,
    )
    assert (training.batch_size, training.weight_decay) == (8, 0.0)
    assert training.style_steps is None and training.refit_every is None
    assert (config.model.dtype, config.model.remat) == ("bfloat16", "layer")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", config.model.path)


def test_the_preset_for_vllm_is_the_papers_without_the_head():
    papers = load(CONFIGS / "llama3_8b_openbookqa.yaml")
    without = load(CONFIGS / "llama3_8b_openbookqa_vllm.yaml")
    assert without.lora.modules == papers.lora.modules - {"lm_head"}
    assert replace(without, lora=papers.lora) == papers


SMALL_MODEL = ("arc_easy", "invented_facts", "openbookqa")


@pytest.mark.parametrize("task", SMALL_MODEL)
def test_presets_of_a_small_model_score_the_text_of_options_and_say_what_was_not_chosen(task):
    preset = CONFIGS / f"smollm2_135m_{task}.yaml"
    config = load(preset)
    assert (config.data.task, config.data.path) == (task, None)
    assert (config.data.prompt, config.option_score) == ("cloze", "mean")
    assert [entry.partition("=")[0] for entry in config.compare] == ["sft", "ls", "cols"]
    assert {method.space for method in config.resolved_methods().values()} == {"options"}
    assert config.model.path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    if task == "invented_facts":
        assert "a trial by hand" in header(preset)
    else:
        assert "not yet chosen" in header(preset).lower()


def test_the_invented_facts_are_taught_in_twelve_epochs_of_thirty_updates():
    config = load(CONFIGS / "smollm2_135m_invented_facts.yaml")
    assert config.training.finetune_steps(config.facts.train) == 360
    assert (config.lora.r, config.lora.target_modules) == (8, ("all-linear",))
    assert config.training.learning_rate == 1e-3


@pytest.mark.parametrize("file", sorted((CONFIGS / "models").glob("*.json")), ids=lambda p: p.stem)
def test_a_named_shape_has_the_published_number_of_parameters(file):
    """Counted from the architecture's definition, embedding and head included."""
    c = from_hf(json.loads(file.read_text()), str(file))
    d, heads, kv = c.hidden_size, c.num_heads * c.head_dim, c.kv_heads * c.head_dim
    attention = d * heads * 2 + d * kv * 2 + (heads + 2 * kv if c.qkv_bias else 0)
    mlp = 3 * d * c.intermediate_size
    if c.experts is not None:  # and a row of the router for each
        mlp = c.experts.number * (3 * d * c.experts.width + d)
    layer = attention + mlp + 2 * d + (2 * c.head_dim if c.qk_norm == "head" else 0)
    tables = c.vocab_size * d * (1 if c.tie_word_embeddings else 2)
    assert c.num_layers * layer + tables + d == PARAMETERS[file.stem]


def test_every_named_shape_is_tested():
    assert {f.stem for f in (CONFIGS / "models").glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("file", SUITES, ids=lambda p: p.stem)
def test_a_suite_plans_its_cells_and_leaves_its_questions_whole(file, tmp_path):
    suite = load_config(SuiteConfig, ["--config", str(file)], prog="", description="").config
    planned = cells(suite, tmp_path)
    assert len(planned) == len(suite.conditions) * len(suite.seeds)
    text = header(file)
    short = file.stem.removeprefix("world_")  # `cogcalib study frontier`
    assert any(f"cogcalib study {name}" in text for name in (file.stem, short))
    assert "Needs:" in text
    for cell in planned:
        # Their texts stand in the question, which is never cut (docs/tasks.md).
        if {"mmlu:history", "mmlu:law"} & set(cell.config.also):
            assert cell.config.data.max_length >= 2048
