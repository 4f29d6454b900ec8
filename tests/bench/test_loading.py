"""`benchmarks/loading.py`: what it measures, and that loading keeps to its bound."""

import json

import pytest

from benchmarks import loading
from benchmarks.make_random_checkpoint import make_checkpoint
from cogcalib_jax.errors import run_main
from tests.golden.families import FAMILIES

# A stack of layers is 16 times as large as the largest tensor, so that holding one twice shows.
SHAPE = FAMILIES["llama3"] | {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LARGEST = 2 * 3072 * 512
MATRICES = 2 * 16 * (3 * 3072 * 512 + 2 * 512 * 512 + 2 * 256 * 512) + 2 * 2 * 1024 * 512
NORMS = 2 * (2 * 16 + 1) * 512


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    make_checkpoint(folder / "shape.json", folder / "model", 4, None)
    return folder / "model"


def test_a_sharded_checkpoint_is_loaded_within_its_bound(checkpoint, tmp_path, capsys):
    file = tmp_path / "load.json"
    options = "--simulated-devices 8 --mesh.fsdp 4 --mesh.tensor 2 --model.dtype bfloat16"
    command = ["--model.path", str(checkpoint), *options.split(), "--json", str(file)]
    assert run_main(loading.main, [*command, "--repeats", "1"]) == 0
    figures = json.loads(file.read_text())
    assert (figures["devices"], figures["shards"], figures["model"]) == (8, 4, "model")
    assert figures["file_bytes"] == MATRICES + NORMS
    # Norms are cut for no tensor axis: some devices hold copies.
    assert MATRICES + NORMS <= figures["shard_bytes"] <= MATRICES + 8 * NORMS
    assert figures["bound_bytes"] == figures["shard_bytes"] + LARGEST
    assert figures["gb_per_s"] == pytest.approx(figures["file_bytes"] / 1e9 / figures["seconds"])
    # 4 MB beside the arrays were measured, and 26 MB when a stack of layers was held twice.
    assert figures["shard_bytes"] <= figures["peak_host_bytes"]
    assert figures["peak_host_bytes"] < figures["shard_bytes"] + 5 * LARGEST
    out = capsys.readouterr().out
    assert "onto 8 x cpu (fsdp 4 x tensor 2)" in out and "own shards plus the largest" in out


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_checkpoint_takes_no_more_than_itself_and_a_tensor(checkpoint, tmp_path, kind):
    file = tmp_path / "load.json"
    options = f"--simulated-devices 8 --mesh.fsdp 4 --mesh.tensor 2 --model.quantise {kind}"
    command = ["--model.path", str(checkpoint), *options.split(), "--json", str(file)]
    assert run_main(loading.main, [*command, "--model.dtype", "bfloat16", "--repeats", "1"]) == 0
    figures = json.loads(file.read_text())
    tables = 2 * 2 * 1024 * 512
    numbers = (MATRICES - tables) // 2
    codes = numbers if kind == "int8" else numbers // 2
    held = codes + 4 * numbers // 64 + tables + NORMS
    assert held <= figures["shard_bytes"] <= held + 7 * NORMS
    # As above, some MB are not the loader's.
    assert figures["peak_host_bytes"] < figures["shard_bytes"] + 5 * LARGEST


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "model.path: not given; must name a checkpoint"),
        (["--model.path", "{model}/nowhere"], "no such folder"),
        (["--model.path", "{model}", "--repeats", "0"], "repeats = 0: must be"),
        (["--model.path", "{model}", "--json", "{model}"], "cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_one_line(checkpoint, options, says, capsys):
    words = [option.format(model=checkpoint) for option in options]
    assert run_main(loading.main, words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
