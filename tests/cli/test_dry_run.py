"""--dry-run of train.py: what is printed, counted by hand, and that nothing is done."""

import json
import re
import shutil

import pytest

import train
from cogcalib_jax.configlib.sources import find_preset
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
    assert "Before that, the base is pretrained once" in text
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


@pytest.mark.parametrize(("context", "said"), [(16, True), (19, False)])
def test_texts_beyond_the_models_context_are_said(base, rows, capsys, tmp_path, context, said):
    """The longest text is cut to 20 tokens, of which the last is no input."""
    short = shutil.copytree(base, tmp_path / "short")
    file = short / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": context}))
    words = custom(short, rows, "--data.on-bad-row", "skip")
    here = "texts of up to 19 tokens are longer than the model's context of 16"
    assert (here in flat(report(capsys, train.main, words))) is said


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
