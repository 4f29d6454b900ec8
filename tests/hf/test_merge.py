"""Merging: the same logits without an adapter, a whole folder or none, and an honest card."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cogcalib_jax.calibration import CALIBRATORS
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf import merge as merging
from cogcalib_jax.hf.adapter import base_hash, load_adapter
from cogcalib_jax.hf.adapter_config import read_lora_config
from cogcalib_jax.hf.card import UNKNOWN_LICENCE, model_card, without_folders
from cogcalib_jax.hf.files import public_name
from cogcalib_jax.hf.merge import main
from cogcalib_jax.hf.weights import load_decoder, read_config
from tests.calibration.rows import with_start
from tests.golden.checkpoints import golden, write_adapter, write_model
from tests.golden.families import FAMILIES
from tests.models.small import forward, one_device

TOKENS = np.random.RandomState(3).randint(0, 64, (2, 9)).astype(np.int32)


def base_and_adapter(root: Path, family: str) -> tuple[Path, Path]:
    shapes = json.loads(str(golden(family)["shapes"]))
    base = write_model(root / "base", FAMILIES[family], shapes)
    (base / "tokenizer.json").write_text("{}")
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    (base / "pytorch_model.bin").write_text("never copied")
    adapter = write_adapter(root / "adapter", shapes, *shapes["model.embed_tokens.weight"])
    return base, adapter


@pytest.fixture
def pair(tmp_path):
    return base_and_adapter(tmp_path, "llama3")


def merge(base: Path, adapter: Path, out: Path, *options: str) -> int:
    command = ["--model.path", str(base), "--adapter", str(adapter), "--out", str(out), *options]
    return run_main(main, command)


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    lora = None if adapter is None else read_lora_config(adapter)
    decoder = load_decoder(folder, lora=lora, mesh=one_device())
    if adapter is not None:
        load_adapter(adapter, decoder)
    return np.asarray(forward(decoder, TOKENS)[1])


@pytest.mark.parametrize("family", ["llama3", "llama3.2"])
def test_the_merged_model_has_the_logits_of_base_and_adapter(family, tmp_path):
    base, adapter = base_and_adapter(tmp_path, family)
    assert merge(base, adapter, tmp_path / "out", "--max-shard-gb", "2e-5") == 0
    wanted = logits(base, adapter)
    np.testing.assert_allclose(logits(tmp_path / "out"), wanted, atol=1e-4, rtol=0)
    assert np.abs(logits(base) - wanted).max() > 1e-2
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()


def test_a_tied_head_with_an_adapter_becomes_its_own_tensor(tmp_path):
    base, adapter = base_and_adapter(tmp_path, "llama3.2")
    assert merge(base, adapter, tmp_path / "out") == 0
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert not read_config(tmp_path / "out").tie_word_embeddings
    assert "**Head**: a tensor of its own" in (tmp_path / "out" / "README.md").read_text()
    # What reads tokens stays as it was: PEFT's adapter is on the head alone.
    embedding = "model.embed_tokens.weight"
    np.testing.assert_array_equal(after[embedding], before[embedding])
    assert after.keys() - before.keys() == {"lm_head.weight"}


def test_a_base_that_stores_its_tied_weight_as_the_head_is_merged(tmp_path):
    base, adapter = base_and_adapter(tmp_path, "llama3.2")
    wanted = logits(base, adapter)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, file)
    assert merge(base, adapter, tmp_path / "out") == 0
    np.testing.assert_allclose(logits(tmp_path / "out"), wanted, atol=1e-4, rtol=0)


def test_a_tied_head_without_an_adapter_stays_tied(tmp_path):
    base, adapter = base_and_adapter(tmp_path, "llama3.2")
    file = adapter / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "lm_head" not in n}, file)
    raw = json.loads((adapter / "adapter_config.json").read_text())
    raw["target_modules"].remove("lm_head")
    (adapter / "adapter_config.json").write_text(json.dumps(raw))
    assert merge(base, adapter, tmp_path / "out") == 0
    assert read_config(tmp_path / "out").tie_word_embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(base, adapter), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_merged_in_float32_and_stored_as_asked(pair, dtype, tmp_path):
    base, adapter = pair
    assert merge(base, adapter, tmp_path / "wide") == 0
    assert merge(base, adapter, tmp_path / "out", "--dtype", dtype) == 0
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert tensor.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(tensor, wide[name].astype(jnp.dtype(dtype)))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_the_folder_is_complete_and_keeps_the_bases_own_config(pair, tmp_path):
    base, adapter = pair
    raw = json.loads((base / "config.json").read_text())
    stored = raw | {"torch_dtype": "bfloat16", "_name_or_path": "/home/someone/base"}
    (base / "config.json").write_text(json.dumps(stored | {"a_field_of_tomorrow": 3}))
    assert merge(base, adapter, tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == raw | {"torch_dtype": "float32", "a_field_of_tomorrow": 3}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def write_run(folder: Path, adapter: Path, base: Path) -> Path:
    """What train.py leaves in a run folder, as far as a merge reads it."""
    shutil.copytree(adapter, folder / "adapter")
    raw = json.loads((adapter / "adapter_config.json").read_text())
    raw["base_model_name_or_path"] = str(base)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(raw))
    calibration = {"base": {"name": base.name, "hash": base_hash(base)}}
    (folder / "adapter" / "calibration.json").write_text(json.dumps(calibration))
    (folder / "config.yaml").write_text(
        "seed: 3\n"
        "data: {task: custom, path: /home/someone/questions}\n"
        "method: {term: ls, gate: adaptive, weight: 0.3, space: options}\n"
        "training: {epochs: 2.0}\n"
        "evaluation: {bins: 15}\n"
    )
    refits = [
        {"step": step, "phase": "refit", "threshold": t, "tpr": 0.9, "tnr": 0.8, "n": 50}
        for step, t in ((5, 0.25), (9, 0.75))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(fit) + "\n" for fit in refits))
    numbers = {
        "n": 1500,
        "accuracy": 0.5,
        "ece": 0.125,
        "ece_noise_floor": {"mean": 0.03, "p95": 0.04},
        "nll": 1.25,
        "brier": 0.625,
        "auroc": None,
    }
    command = "python train.py --config /home/someone/my.yaml --run-dir runs/x"
    task = numbers | {"option_score": "chars", "vocab": numbers}
    results = {"custom": task, "provenance": {"command": command}}
    (folder / "eval.json").write_text(json.dumps(results))
    return folder


def test_a_run_is_merged_and_its_card_says_what_was_measured(pair, tmp_path):
    base, adapter = pair
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    (base / "LICENSE.txt").write_text("the terms")
    run = write_run(tmp_path / "run", adapter, base)
    out = tmp_path / "out"
    assert run_main(main, ["--run", str(run), "--out", str(out)]) == 0
    np.testing.assert_allclose(logits(out), logits(base, adapter), atol=1e-4, rtol=0)
    assert (out / "LICENSE.txt").read_text() == "the terms"
    stored = json.loads((run / "adapter" / "calibration.json").read_text())
    assert json.loads((out / "calibration.json").read_text()) == stored | {"merged": True}
    card = (out / "README.md").read_text()
    for text in (
        "license: apache-2.0",
        "**Base**: base\n",
        "**Licence of the base**: apache-2.0 (its text: [LICENSE.txt]",
        "task `custom` from `questions`, 2 epochs, seed 3",
        "cross-entropy + 0.3 x ls over the options, applied to: adaptive",
        "NLL of at most 0.75 nats (last fit, step 9; true positive rate 0.900",
        "| custom | options | 1,500 | 0.500 | 0.125 | 0.030, 0.040 | 1.250 | 0.625 | none |",
        "15 equal-width bins",
        "Options are scored by the rule `chars`",
        "    python train.py --config .../my.yaml --run-dir runs/x\n",
    ):
        assert text in card, text
    assert "someone" not in card and str(tmp_path) not in card


def test_a_merge_leaves_out_a_mixture_and_says_so(pair, tmp_path, capsys):
    base, adapter = pair
    run = write_run(tmp_path / "run", adapter, base)
    file = run / "adapter" / "calibration.json"
    scores, labels, mask, start = with_start()
    for name, kept in (("mixture", False), ("platt", True)):
        fitted = CALIBRATORS.make(name).fit(scores, labels, mask=mask, start_scores=start)
        stored = json.loads(file.read_text()) | {"calibrator": fitted.to_json()}
        file.write_text(json.dumps(stored))
        assert run_main(main, ["--run", str(run), "--out", str(tmp_path / name)]) == 0
        stored = json.loads((tmp_path / name / "calibration.json").read_text())
        assert stored["calibrator"] == (fitted.to_json() if kept else None)
        assert ("calibrator mixture is left out" in capsys.readouterr().err) != kept
        assert kept or "needs the start's scores" in stored["why_no_calibrator"]


def test_a_card_without_a_run_says_that_nothing_is_known(pair, tmp_path):
    assert merge(*pair, tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**Licence of the base**: unknown: see the base" in card
    assert "unknown: merged from an adapter without its run" in card
    assert "Not measured" in card


def test_folders_and_pipes_in_a_base_are_left_where_they_are(pair, tmp_path):
    base, adapter = pair
    (base / "LICENSES").mkdir()
    (base / "tokenizer").mkdir()
    os.mkfifo(base / "tokenizer.x")  # opened, it would wait for a writer that never comes
    assert merge(base, adapter, tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "tokenizer.json" in names and names.isdisjoint({"LICENSES", "tokenizer", "tokenizer.x"})
    assert "its text" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("date: 2023-02-30\nlicense: mit", UNKNOWN_LICENCE),
        ("a: " + "[" * 10_000, UNKNOWN_LICENCE),
        ("license_name: [a]\nlicense: mit", "mit"),
        ("license_name: own\nlicense: other", "own"),
        ("license: [a]", UNKNOWN_LICENCE),
    ],
)
def test_a_base_may_say_anything_of_its_licence(front, licence, pair, tmp_path):
    base, adapter = pair
    (base / "README.md").write_text(f"---\n{front}\n---\n")
    card = model_card(None, "base", base, read_lora_config(adapter), [])
    assert f"**Licence of the base**: {licence}\n" in card


def test_a_damaged_run_is_told_before_the_weights_are_merged(pair, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", pair[1], pair[0])
    (run / "eval.json").write_text("{")
    monkeypatch.setattr(merging, "write_folder", lambda *_, **__: pytest.fail("weights first"))
    assert run_main(main, ["--run", str(run), "--out", str(tmp_path / "out")]) == 2


def test_a_full_disk_is_named_by_the_folder_that_is_written(pair, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    assert merge(*pair, tmp_path / "out") == 2
    assert f"error: {tmp_path / 'out'}: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["inf", "nan", "0"])
def test_a_shard_has_a_finite_size(pair, tmp_path, size, capsys):
    assert merge(*pair, tmp_path / "out", "--max-shard-gb", size) == 2
    assert "max_shard_gb = " in capsys.readouterr().err


def test_folders_leave_a_name_and_hub_ids_stay():
    assert public_name("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert public_name("/home/someone/models/base") == public_name("~/models/base") == "base"
    assert without_folders("a --x /home/me/b --y=~/c/d.txt --z ../e/f --m Qwen/Q") == (
        "a --x .../b --y=.../d.txt --z .../f --m Qwen/Q"
    )


def wider(base: Path, adapter: Path) -> None:
    raw = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(raw | {"intermediate_size": 96}))


def another_rank(base: Path, adapter: Path) -> None:
    raw = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(raw | {"r": 3}))


def trained_further(base: Path, adapter: Path) -> None:
    """The base's shapes, but not its weights: an instruct version, say."""
    calibration = {"base": {"name": "org/base", "hash": base_hash(base)}}
    (adapter / "calibration.json").write_text(json.dumps(calibration))
    file = base / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)


def damaged_calibration(base: Path, adapter: Path) -> None:
    (adapter / "calibration.json").write_text('{"base": 3}')


def too_large_for_float16(base: Path, adapter: Path) -> None:
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, file)


def out_is_a_file(base: Path, adapter: Path) -> None:
    (base.parent / "out").write_text("mine")


def out_leads_nowhere(base: Path, adapter: Path) -> None:
    (base.parent / "out").symlink_to("nowhere")


def out_holds_files(base: Path, adapter: Path) -> None:
    (base.parent / "out").mkdir()
    (base.parent / "out" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (wider, "do not belong together; misshapen: "),
        (another_rank, "r is 3, but .*use the files of one adapter"),
        (trained_further, r"trained on another base \(org/base\)"),
        (damaged_calibration, "calibration.json: damaged"),
        (too_large_for_float16, "model.norm.weight: holds values that float16 cannot"),
        (out_is_a_file, "out: is a file"),
        (out_leads_nowhere, "out: is a link"),
        (out_holds_files, "out: holds files already"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(damage, says, pair, capsys):
    damage(*pair)
    root = pair[0].parent
    before = sorted(root.rglob("*"))
    assert merge(*pair, root / "out", "--dtype", "float16") == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1
    assert sorted(root.rglob("*")) == before


def test_a_target_that_cannot_be_written_is_one_line(pair, tmp_path, capsys, monkeypatch):
    # Not by permissions: whoever runs the tests may be allowed everything.
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    assert merge(*pair, tmp_path / "out") == 2
    assert "out: cannot be written (Read-only file system)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["--run", "{run}/.."], "is a comparison of methods; give one of them: .*run"),
        (["--run", "{run}/adapter"], "no config.yaml"),
        (["--run", "{run}", "--adapter", "{run}/adapter"], "one of the two"),
        ([], "one of the two"),
        (["--run", "{run}"], "its base is not here; give it with --model.path"),
    ],
)
def test_what_is_not_a_runs_adapter_is_told(pair, tmp_path, command, says, capsys):
    base, adapter = pair
    run = write_run(tmp_path / "compared" / "run", adapter, base)
    base.rename(tmp_path / "moved")
    words = [word.format(run=run) for word in command]
    assert run_main(main, [*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_hash_tells_weights_and_not_how_they_are_cut(pair, tmp_path):
    base, adapter = pair
    assert merge(base, adapter, tmp_path / "one") == 0
    assert merge(base, adapter, tmp_path / "many", "--max-shard-gb", "2e-5") == 0
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert base_hash(tmp_path / "one") == base_hash(tmp_path / "many") != base_hash(base)
