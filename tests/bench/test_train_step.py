"""`python bench.py train`: what it measures, what it writes and what it refuses."""

import contextlib
import io
import json
import math
from dataclasses import replace
from typing import NamedTuple

import pytest

import bench
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf.weights import save_decoder
from cogcalib_jax.method.config import MethodConfig
from cogcalib_jax.models.config import ModelConfig
from cogcalib_jax.models.lora import LoraConfig
from cogcalib_jax.world.config import WorldConfig
from cogcalib_jax.world.corpus import save_tokenizer, vocabulary
from tests.inference.tiny import TINY
from tests.models.small import small_decoder

# A world of a few people, and random weights: what a step costs does not depend on what they know.
WORLD = WorldConfig(
    entities=12,
    exposures=(0, 4),
    exposure_probabilities=(0.5, 0.5),
    known_exposure=4,
    train=16,
    test=8,
    validation=4,
    calibration=8,
    style=8,
)
LINEAR = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)  # TINY's two layers
WORDS = 4 + len(vocabulary(WORLD))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "random"
    save_decoder(small_decoder(replace(TINY, vocab_size=WORDS)), folder)
    save_tokenizer(WORLD, folder, TINY.max_position_embeddings)
    return folder


@pytest.fixture(scope="module")
def preset(base):
    run = RunConfig(
        world=WORLD,
        model=ModelConfig(path=str(base)),
        lora=LoraConfig(target_modules=("q_proj",)),
        method=MethodConfig(space="options", weight=0.3),
    )
    file = base.parent / "tiny.yaml"
    file.write_text(to_yaml(run))
    return file


class Measurement(NamedTuple):
    figures: dict
    table: list[str]


@pytest.fixture(scope="module")
def measurement(preset):
    """One measurement of sft and cols."""
    out, shown = preset.parent / "figures" / "train.json", io.StringIO()
    argv = ["train", "--config", str(preset), "--methods", "cols", "--steps", "11"]
    with contextlib.redirect_stdout(shown):
        assert run_main(bench.main, [*argv, "--json", str(out)]) == 0
    return Measurement(json.loads(out.read_text()), shown.getvalue().splitlines())


@pytest.fixture
def measured(measurement):
    return measurement.figures


def test_sft_is_measured_beside_what_was_asked_for(measured):
    assert list(measured["methods"]) == ["sft", "cols"]
    assert measured["rounds"] == 11
    assert measured["config"]["methods"] == ["cols"]


def test_figures_belong_together(measured):
    """Every round has the same batch size, so medians over an odd number of rounds are exact."""
    sft = measured["methods"]["sft"]
    assert sft["ratio_to_sft"] == 1.0 and sft["ratio_to_sft_ci95"] == [1.0, 1.0]
    for figures in measured["methods"].values():
        assert figures["examples_per_s"] == pytest.approx(8e3 / figures["step_ms"])
        for name in ("step_ms", "ratio_to_sft"):
            low, high = figures[f"{name}_ci95"]
            assert 0 < low <= figures[name] <= high
        assert 0 < figures["tokens_per_s"] <= figures["padded_tokens_per_s"]
        assert figures["model_flop_per_s"] > 0
        mfu = figures["model_flop_per_s"] / measured["peak"]["flop_per_s"]
        assert figures["mfu"] == pytest.approx(mfu) and 0 < mfu < 1.5


def test_a_batch_is_described_by_what_it_holds(measured):
    """Questions of the world have eight or nine tokens after BOS; one label each is scored."""
    batch = measured["batch"]
    (shape,) = measured["shapes"]
    assert shape[:2] == [1, 8] and batch["padded_tokens"] == math.prod(shape)
    assert 8 * 8 <= batch["tokens"] <= 8 * 10
    adapters = 6 * 8 * TINY.num_layers * (TINY.hidden_size + TINY.num_heads * TINY.head_dim)
    head = 8 * 4 * WORDS * TINY.hidden_size
    per_token = (batch["model_flop"] - head) / batch["tokens"] - 4 * LINEAR - adapters
    attention = 6 * TINY.num_heads * TINY.head_dim * TINY.num_layers
    assert 8 * attention <= per_token <= 10 * attention


def test_the_peak_is_measured_where_no_maker_publishes_it(measured):
    assert measured["peak"]["flop_per_s"] > 1e6
    assert "float32 matrices, timed here" in measured["peak"]["source"]


def test_parts_of_the_measurement_are_told_apart(measured):
    phases = measured["phases"]
    assert list(phases) == ["loading", "batches", "compiling", "steps"]
    peaks = [phase["peak_host_bytes"] for phase in phases.values()]
    assert peaks == sorted(peaks) and peaks[-1] <= measured["peak_host_bytes"]
    assert all(phase["seconds"] > 0 for phase in phases.values())
    assert all(phase["peak_device_bytes"] is None for phase in phases.values())


def test_where_figures_come_from_is_written_beside_them(measured):
    assert measured["device"] == "cpu" and measured["devices"] == 8
    assert {"jax", "flax", "cogcalib-jax"} <= measured["versions"].keys()
    assert measured["config"]["world"]["entities"] == 12
    assert measured["command"].startswith("python bench.py train --config")
    assert measured["peak_host_bytes"] > 2**20


def test_the_table_shows_every_method(measurement):
    *_, line, sft, cols, _, _, mfu, phases, noise = measurement.table
    assert set(line) == {"-", " "}
    assert [row.split()[0] for row in (sft, cols)] == ["sft", "cols"]
    assert f"{measurement.figures['methods']['cols']['step_ms']:.2f}" in cols
    assert "noise of a ratio" in noise
    assert mfu.startswith("MFU: of ") and "loading" in phases


def test_options_of_several_tokens_are_measured_too(preset, tmp_path, capsys):
    rows = [
        {"question": f"where does Ada {i} work ?", "choices": [f"acme {i}", "hooli"], "answer": 0}
        for i in range(60)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data.task", "custom", "--data.path", str(file), "--data.prompt", "cloze"]
    argv = ["train", "--config", str(preset), *data, "--methods", "sft", "--steps", "10"]
    assert run_main(bench.main, argv) == 0
    assert "sft" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            [],
            "a command is missing; write python bench.py COMMAND (allowed: train, ",
        ),
        (["run"], "'run' is no command"),
        (["train", "--methods", "sft,magic"], "method is 'magic'; expected sft, a term (ls"),
        (["train", "--methods", "cols,cols=0.1"], "must name each method once"),
        (["train", "--steps", "3"], "steps = 3: must be at least 10"),
        (["train", "--step", "30"], "unknown key step; did you mean steps?"),
        (["train", "--compare", "sft,cols"], "name the methods with --methods"),
        (["train", "--method.gate", "all"], "name the methods with --methods"),
        (["train", "--run-dir", "x"], "--run-dir has no meaning for a benchmark"),
        (["train", "--json", "/proc/none/x.json"], "/proc/none/x.json: cannot be written"),
        (["train", "--data.task", "boolq"], "model.path"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(argv, told, capsys):
    assert run_main(bench.main, argv) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_help_lists_its_own_fields_and_those_of_the_run(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["train", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--methods" in shown and "--lora.r" in shown
    bench.main(["--help"])
    assert "train" in capsys.readouterr().out
