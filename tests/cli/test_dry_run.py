"""--dry-run of train.py and eval.py: what is printed, counted by hand, and that nothing is done."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import eval as eval_program
import train
from cogcalib_jax.cli.run_config import RunConfig
from cogcalib_jax.configlib.loading import load_config
from cogcalib_jax.configlib.sources import find_preset
from cogcalib_jax.configlib.values import to_yaml
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf import files as model_files
from cogcalib_jax.world.corpus import build_splits
from tests.cli.small_base import WORLD, arguments, write_base

PLAYS = ["banjo", "cello", "drums", "flute"]
FIRST = ("Ada", "Alan", "Alma", "Amir", "Anna", "Anton", "Basil", "Bela", "Boris", "Clara", "Cora")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch, tmp_path):
    """A fresh working folder, and no weight that could be read."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refuse(*args, **kwargs):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(model_files, "open_folder", refuse)
    monkeypatch.setattr("cogcalib_jax.hf.weights.open_folder", refuse)


def ask(number, answer, **more):
    """Questions of five tokens, BOS included, all different."""
    first, second = FIRST[number % 11], FIRST[number // 11]
    return {
        "question": f"{first} {second} plays the",
        "choices": PLAYS,
        "answer": answer,
        "id": f"row {number}",
        **more,
    }


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def rows(tmp_path):
    """60 training rows and 20 test rows, 45 and 15 of them with the first option right; and among
    the training rows two that repeat others, three that ask test questions, one that asks a test
    question with other options, and one that cannot be used. A test row has a long passage."""
    own = [ask(n, 0 if n % 4 else 1 + n // 4 % 3) for n in range(80)]
    training, test = own[:60], own[60:]
    test[1] = {**test[1], "passage": " ".join(["lisbon oslo cairo lima"] * 8)}
    training += [{**row, "id": f"again {row['id']}"} for row in training[:2]]
    training += [
        {**row, "question": row["question"].upper(), "id": f"leak {row['id']}"} for row in test[2:5]
    ]
    training.append({**test[5], "choices": ["piano", "violin"], "answer": 0, "id": "near"})
    training.append({**own[0], "choices": ["banjo"], "answer": 0, "id": "broken"})
    return write(tmp_path / "rows", train=training, test=test)


def custom(base, rows, *more):
    options = {
        "config": find_preset("own_questions"),
        "model.path": base,
        "data.path": rows,
        "data.prompt": "cloze",
        "data.max-length": 20,
        "data.calibration-rows": 10,
        "data.validation-rows": 10,
        "training.batch-size": 4,
        "training.epochs": 2,
        "evaluation.batch-size": 8,
        "mesh.data": 1,
        "mesh.fsdp": 4,
        "mesh.tensor": 2,
        "lora.target_modules": "q_proj,v_proj",
    }
    return [str(x) for key, value in options.items() for x in (f"--{key}", value)] + [*more]


def report(capsys, main, argv):
    assert run_main(main, [*argv, "--dry-run"]) == 0
    return capsys.readouterr().out


def line_of(text, name):
    """Cells of the first table line that begins with `name`."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return re.split(r"\s{2,}", line)


def flat(text):
    """Without the line breaks that wrapping made."""
    return " ".join(text.split())


def test_of_ones_own_rows(base, rows, capsys, tmp_path):
    out = report(capsys, train.main, custom(base, rows, "--data.on-bad-row", "skip"))
    text = flat(out)
    # 15 of 20 test questions have the first option right, the other five are 1 + 15 % 3 = 1, ...
    assert line_of(out, "test") == ["test", "20", "4", "75 10 10 5", "75.0 %", "25.0 %"]
    sizes = {name: int(line_of(out, name)[1]) for name in ("style", "train", "calibration")}
    # 60 + 2 + 1 rows are left; 10 and 10 are carved, and a tenth of 43 is for style.
    assert sizes == {"style": 4, "train": 39, "calibration": 10}
    assert "1 of 67 rows cannot be used and were left out" in text
    assert "train: 3 of 66 rows left out, since they repeat a question of the test split" in text
    assert "No question of style, train, calibration, validation, test stands in another" in text
    assert "1 of 20 questions of test in the same words as one of" in text
    assert re.search(r"choosing it always is right in .*test 75.0 % \(option 1\)", text)
    # Five tokens and the answer; the passage of 32 words is cut to fit into 20.
    lengths = out.split("== Tokens")[1]
    assert line_of(lengths, "test") == ["test", "6", "6", "7", "20", "1 (5.0 %)"]
    assert line_of(lengths, "train")[1:] == ["6", "6", "6", "6", "0 (0.0 %)"]
    assert re.search(r"\| <s>\w+ \w+ plays the▶ (banjo|cello|drums|flute)", out)
    assert "5 tokens and 1 token of answer" in text
    # 2 x 39 / 4 = 19.5 updates, 5 % of them for style.
    assert "Style adaptation: 1 update of 4 on 4 questions" in text
    assert (
        "Fine-tuning: 20 updates of 4 on 39 questions (2.1 epochs) for each of: sft, ls, cols"
        in text
    )
    assert "fitted first, then 2 times" in text
    # 2.8016 x .25 / sqrt(20) and 2.8016 / sqrt(20).
    assert "in Brier 0.157 and in NLL 0.626 nats" in text
    found = re.search(r"base ([\d.]+) kB, adapter ([\d.]+) kB\.", text)
    assert float(found[1]) > float(found[2]) > 0
    assert "Training holds the adapter four times" in text
    assert "calibration: 10 rows for threshold and temperature; below 100" in text
    assert not list((tmp_path / "here").iterdir())


def test_a_world_whose_base_is_not_there_is_not_built(capsys, tmp_path):
    argv = arguments("none", tmp_path / "run", "--pretrain.cache-dir", str(tmp_path / "cache"))
    compare = "sft,cols,mc_dropout,ensemble,laplace_lora"
    argv += ["--pretrain.hidden-size", "32", "--compare", compare]
    argv += ["--mesh.data", "8", "--evaluation.batch-size", "8"]
    out = report(capsys, train.main, argv)
    text = flat(out)
    assert "on world with the world's base, which is not built yet" in text
    for name in ("train", "test", "validation", "calibration", "style"):
        assert line_of(out, name)[1:3] == [str(getattr(WORLD, name)), "8"]
    assert line_of(out, "world:taught_form_b")[1] == str(WORLD.train)
    assert "Before that, the base is pretrained once on" in text
    # 24 rows twice in batches of 8, and two updates before.
    assert "Style adaptation: 2 updates of 8 on 16 questions" in text
    assert (
        "Fine-tuning: 6 updates of 8 on 24 questions (2.0 epochs) for each of: sft, cols." in text
    )
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_of_open_questions(realdata, tmp_path, capsys):
    """One in three has a second accepted answer, and every other one has the same reference."""
    rows = [
        {**ask(n, 0), "answer": ["banjo" if n % 2 else PLAYS[n % 3], *["lima"][: n % 3 == 0]]}
        for n in range(60)
    ]
    for row in rows:
        del row["choices"]
    folder = write(tmp_path / "open", train=rows[:40], test=rows[40:])
    base = realdata / "models" / "stories260K"
    argv = custom(
        base, folder, "--compare", "sft", "--data.prompt", "qa", "--data.max-length", "60"
    )
    out = report(capsys, train.main, argv)
    # Of 40 .. 59: ten odd ones are banjo, as are 42, 48 and 54; those and 45, 51, 57 have two.
    cells = line_of(out, "test")
    assert cells == ["test", "20", "1 / 1.3 / 2", "banjo", "65.0 %"]
    assert "one answer is frequent" in flat(out)
    assert "spread evenly from 0 to 1" in flat(out)


def test_mistakes_end_as_in_a_run(base, rows, capsys):
    def refused(*more):
        assert run_main(train.main, [*custom(base, rows, *more), "--dry-run"]) == 2
        error = capsys.readouterr().err
        return error.splitlines()[-1]

    assert re.match(r"error: .*train.jsonl:67: has 1 choices", refused())
    skip = ("--data.on-bad-row", "skip")
    assert "training.batch_size" in refused(*skip, "--training.batch-size", "3")
    assert "no such folder" in refused(*skip, "--model.path", "nowhere")
    assert "mesh" in refused(*skip, "--mesh.fsdp", "3")
    assert "must be from 2 to 500" in refused(*skip, "--data.calibration-rows", "1000")


@pytest.fixture
def run(base, rows, tmp_path):
    """A finished run as far as a dry run can tell."""
    argv = custom(base, rows, "--data.on-bad-row", "skip", "--method.name", "sft")
    argv[argv.index("--config") + 1] = find_preset("own_questions")
    config = load_config(RunConfig, [*argv, "--compare", ""], prog="", description="").config
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(lora))
    # Of the adapter's tensors a dry run reads the header alone.
    down = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 32))}
    save_file(down, folder / "adapter" / "adapter_model.safetensors")
    return folder


def test_an_evaluation_is_compared_with_what_was_trained_on(run, tmp_path, capsys):
    """Three questions of ten stand among the run's training rows or in splits carved from them."""
    trained = [json.loads(line) for line in (tmp_path / "rows/train.jsonl").open()]
    other = write(tmp_path / "other", test=[ask(n, n % 4) for n in range(100, 110)])
    shared = trained[:60]
    path = other / "test.jsonl"
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in shared))
    argv = ["--run", str(run), "--task", "custom", "--data.path", str(path)]
    out = report(capsys, eval_program.main, argv)
    text = flat(out)
    assert line_of(out, "custom")[1] == "70"
    found = re.search(r"(\d+) questions of custom also in training rows of custom", text)
    # 60 rows, of which 20 were carved for calibration and validation; of two that stand twice
    # among the training rows both copies lie in one split.
    assert 38 <= int(found[1]) <= 42
    assert "What 70 questions of custom can show" in text
    assert re.search(r"run: base [\d.]+ kB, adapter", text)
    assert not list((tmp_path / "here").iterdir())


def test_its_own_test_rows_were_not_trained_on(run, capsys):
    out = report(capsys, eval_program.main, ["--run", str(run)])
    assert line_of(out, "custom")[1] == "20"
    assert "No question of training rows of custom stands in another split" in flat(out)


@pytest.mark.parametrize(("context", "said"), [(16, True), (19, False)])
def test_texts_beyond_the_models_context_are_said(base, rows, capsys, tmp_path, context, said):
    """The longest text is cut to 20 tokens, of which the last is no input."""
    short = shutil.copytree(base, tmp_path / "short")
    file = short / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": context}))
    words = custom(short, rows, "--data.on-bad-row", "skip")
    here = "texts of up to 19 tokens are longer than the model's context of 16"
    assert (here in flat(report(capsys, train.main, words))) is said
    asked = ["--model.path", str(short), "--task", "custom", "--data.path", str(rows)]
    asked += ["--data.prompt", "cloze", "--data.max-length", "20"]
    assert (here in flat(report(capsys, eval_program.main, asked))) is said


def test_a_bare_base_on_several_tasks(base, rows, capsys):
    world = arguments(base, "none")
    argv = [
        x
        for option, value in zip(world[::2], world[1::2], strict=True)
        if option.startswith(("--model.", "--data.", "--world."))
        for x in (option, value)
    ]
    argv += ["--task", "world,world:taught_form_b"]
    out = report(capsys, eval_program.main, argv)
    assert line_of(out, "world")[1] == str(WORLD.test)
    assert line_of(out, "world:taught_form_b")[1] == str(WORLD.train)
    assert "What the model was trained on is not known here" in out


def test_an_ensemble_counts_every_member(run, capsys, tmp_path):
    other = shutil.copytree(run, tmp_path / "other-run")
    argv = ["--run", f"{run},{other}", "--ensemble"]
    assert "Dry run of evaluating ensemble on custom" in report(capsys, eval_program.main, argv)
    assert run_main(eval_program.main, ["--run", str(run), "--ensemble", "--dry-run"]) == 2
    assert "ensemble: needs at least two runs" in capsys.readouterr().err
    assert run_main(eval_program.main, ["--run", str(run), "--mc-passes", "3", "--dry-run"]) == 2
    assert "without dropout" in capsys.readouterr().err
    asked = [{"question": f"{FIRST[n]} plays the", "answer": "banjo"} for n in range(10)]
    file = str(write(tmp_path / "open", test=asked) / "test.jsonl")
    argv += ["--task", "custom", "--data.path", file, "--data.prompt", "qa", "--dry-run"]
    assert run_main(eval_program.main, argv) == 2
    assert "ensemble: averages the probabilities of options" in capsys.readouterr().err


def test_a_composition_by_the_world_is_composed(base, tmp_path, capsys):
    """Of the world's training rows as many are left as there are of the rarer kind."""
    argv = arguments(base, tmp_path / "run", "--mesh.data", "8", "--evaluation.batch-size", "8")
    argv += ["--composition.known-share", "0.5", "--method.name", "sft"]
    known = [row.extra["known"] for row in build_splits(WORLD, 0).train]
    fewer = min(sum(known), len(known) - sum(known))
    out = report(capsys, train.main, [*argv, "--composition.by", "world"])
    assert line_of(out, "train")[1] == str(fewer)
    out = report(capsys, train.main, argv)
    assert line_of(out, "train")[1] == str(len(known))
    assert "known only after style adaptation" in flat(out)


def test_what_has_no_model_has_no_dry_run(base, tmp_path, capsys):
    file = tmp_path / "predictions.jsonl"
    file.write_text("{}\n")
    assert run_main(eval_program.main, ["--predictions", str(file), "--dry-run"]) == 2
    assert "dry_run" in capsys.readouterr().err
