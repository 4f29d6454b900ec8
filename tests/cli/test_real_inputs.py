"""Other people's files all the way through train.py: a real checkpoint, real rows, real tokenizers,
weights in shards."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import train
from benchmarks.make_random_checkpoint import make_checkpoint, shard_bytes
from cogcalib_jax.errors import run_main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Few questions of each kind, few padded lengths: a second or two apart from compiling.
SMALL = {
    "data.calibration-rows": 24,
    "data.validation-rows": 24,
    "data.test-rows": 24,
    "data.train-rows": 64,
    "training.max-steps": 2,
    "training.style-steps": 1,
    "training.probe-rows": 0,
    "training.log-every": 1,
    "training.learning-rate": 0.01,
    "evaluation.batch-size": 24,
    "evaluation.resamples": 100,
}


def run(folder: Path, rows: Path, model: Path, preset: str, **more) -> list[dict]:
    """Run train.py; the lines of metrics.jsonl."""
    options = {
        "config": CONFIGS / f"{preset}.yaml",
        "model.path": model,
        "data.path": rows,
        "run-dir": folder,
        **SMALL,
        **more,
    }
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    assert run_main(train.main, argv) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]


def require_finished(folder: Path, lines: list[dict], lora_modules: int) -> None:
    updates = [line for line in lines if line["phase"] == "finetune"]
    assert len(updates) == 2
    assert all(
        np.isfinite([line["loss"], line["cal"], line["grad_norm"]]).all() for line in updates
    )
    assert all(line["grad_norm"] > 0 for line in updates)
    metrics = json.loads((folder / "eval.json").read_text())["openbookqa"]
    assert metrics["n"] == 24 and 0 <= metrics["ece"] <= 1
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * lora_modules
    # B began at zero: every adapted layer has learnt something.
    assert all(np.abs(array).max() > 0 for array in adapter.values())


def test_a_real_llama_checkpoint_on_openbookqa(realdata, tmp_path, capsys):
    lines = run(
        tmp_path / "run",
        realdata / "openbookqa",
        realdata / "models" / "stories260K",
        "stories260k_openbookqa",
    )
    require_finished(tmp_path / "run", lines, 2 * 5 + 1)
    # The preset's length holds every row: nothing was cut or left out.
    assert "cannot be encoded" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_qwen_shape_in_shards_with_its_own_tokenizer(realdata, tmp_path):
    """Qwen2.5-0.5B but for width and depth: its vocabulary, heads, biases, tied embeddings."""
    raw = json.loads((CONFIGS / "models" / "qwen2.5-0.5b.json").read_text())
    shape = tmp_path / "shape.json"
    shape.write_text(
        json.dumps(
            raw
            | {
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "head_dim": 8,
                "initializer_range": 0.2,
            }
        )
    )
    model = tmp_path / "model"
    make_checkpoint(shape, model, 2, realdata / "tokenizers" / "Qwen2.5-base")
    assert len(list(model.glob("model-*-of-00002.safetensors"))) == 2
    lines = run(
        tmp_path / "run",
        realdata / "openbookqa",
        model,
        "llama3_8b_openbookqa",
        **{"model.dtype": "float32"},
    )
    require_finished(tmp_path / "run", lines, 2 * 2 + 1)


@pytest.mark.parametrize("sizes", [[5], [3, 3, 3], [9, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_shards_are_as_even_as_their_order_allows(sizes):
    def cut(limit):
        shards = [[]]
        for size in sizes:
            if sum(shards[-1]) + size > limit and shards[-1]:
                shards.append([])
            shards[-1].append(size)
        return shards

    for count in range(1, len(sizes) + 1):
        limit = shard_bytes(sizes, count)
        assert len(cut(limit)) <= count
        assert limit == max(sizes) or len(cut(limit - 1)) > count
