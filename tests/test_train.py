"""`python train.py` from its command line: a run, a resumed run, a comparison, and refusals."""

import errno
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import eval as eval_program
import train
from cogcalib_jax.errors import run_main
from cogcalib_jax.hf import merge
from cogcalib_jax.hf.tokenizer import tokenizer_files, tokenizer_key
from cogcalib_jax.report.recommendation import base_words
from cogcalib_jax.report.report import write_report
from cogcalib_jax.training import checkpoint
from cogcalib_jax.training.checkpoint import Checkpoints
from tests.cli.small_base import WORLD, arguments, write_base
from tests.reliability.resumed import differences
from tests.training.small_trainer import Killed, lines


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def cols(base, tmp_path_factory):
    """A finished run, started in a folder of its own so that its command can be repeated."""
    here = tmp_path_factory.mktemp("cols")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run_main(train.main, arguments(base, "run", "--method.name", "cols")) == 0
    return here / "run"


@pytest.fixture(scope="module")
def comparison(base, tmp_path_factory):
    here = tmp_path_factory.mktemp("comparison") / "run"
    assert run_main(train.main, arguments(base, here, "--compare", "sft,cols")) == 0
    return here


def results(path):
    return json.loads(path.read_text())


def test_a_run_leaves_what_its_contract_says(cols):
    names = {path.name for path in cols.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "dynamics.jsonl", "eval.json", "style"} <= names
    assert {"predictions", "checkpoints", "adapter", "plots", "report.html"} <= names
    assert not list(cols.rglob("*.partial"))
    world = results(cols / "eval.json")["world"]
    assert (world["split"], world["n"]) == ("test", WORLD.test)
    rows = [json.loads(x) for x in (cols / "predictions/world.jsonl").read_text().splitlines()]
    right = [row["prediction"] == row["answer"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(world["accuracy"])
    assert sum(row["nll"] for row in rows) / len(rows) == pytest.approx(world["nll"])
    for row in rows:
        together = row["prompt_ids"] + row["completion_ids"][row["answer"]]
        assert together[0] == 1 and 1 not in together[1:]


@pytest.mark.slow
def test_its_config_repeats_it(cols, base, tmp_path):
    command = ["--config", str(cols / "config.yaml"), "--run-dir", str(tmp_path / "again")]
    assert run_main(train.main, command) == 0
    again, first = (results(d / "eval.json") for d in (tmp_path / "again", cols))
    assert again["world"] == first["world"]


def killed_after_an_epoch(command, monkeypatch):
    save = Checkpoints.save

    def killed(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step == 3:  # the end of the first epoch; style adaptation saves after 2 updates
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", killed)
        run_main(train.main, command)


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(cols, base, tmp_path, monkeypatch, capsys):
    """Elsewhere, and told no more than the run's folder: even eval.json has the same bytes."""
    monkeypatch.chdir(tmp_path)
    command = arguments(base, "run", "--method.name", "cols")
    killed_after_an_epoch(command, monkeypatch)
    assert not (tmp_path / "run/eval.json").exists()
    capsys.readouterr()
    assert run_main(train.main, ["--resume", "--run-dir", "run"]) == 0
    told = capsys.readouterr().err
    assert "== Resuming run: cols" in told and "goes on from update 3 of 6" in told
    assert "\r" not in told
    assert differences(tmp_path / "run", cols) == []


@pytest.mark.slow
def test_a_base_that_moved_is_known_by_its_weights(cols, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cols, "run")
    (tmp_path / "run/eval.json").unlink()
    shutil.copytree(base, "moved")
    file = tmp_path / "run/config.yaml"
    file.write_text(file.read_text().replace(str(base), str(tmp_path / "gone")))
    resume = ["--resume", "--run-dir", "run"]
    refused(resume, "if it was moved, give its new place with --model.path", capsys)
    assert run_main(train.main, [*resume, "--model.path", "moved"]) == 0
    assert results(tmp_path / "run/eval.json")["world"] == results(cols / "eval.json")["world"]
    # From now on it is known where the base lies.
    assert file.read_text() == (cols / "config.yaml").read_text().replace(str(base), "moved")
    (tmp_path / "run/eval.json").unlink()
    assert run_main(train.main, [*resume, "--dry-run"]) == 0

    tensors = load_file("moved/model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, "moved/model.safetensors")
    refused(resume, "model.path = moved: the weights of the base differ", capsys)
    assert not (tmp_path / "run/eval.json").exists()


@pytest.mark.slow
def test_a_method_of_a_comparison_is_not_resumed_by_itself(comparison, capsys):
    command = f"python train.py --resume --run-dir {comparison}"
    refused(["--resume", "--run-dir", str(comparison / "cols")], f"go on with {command}", capsys)


@pytest.mark.slow
def test_resumed_on_another_mesh_it_agrees(cols, base, tmp_path, monkeypatch):
    """Begun on eight parts of the batch, ended on parameters in four and heads in two."""
    run = tmp_path / "run"
    command = arguments(base, run, "--method.name", "cols")
    killed_after_an_epoch(command, monkeypatch)
    mesh = ["--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2"]
    assert run_main(train.main, [*command, "--resume", *mesh]) == 0
    ours, theirs = lines(run), lines(cols)
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        numbers = {key: value for key, value in their.items() if isinstance(value, float)}
        assert {key: our[key] for key in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5)
        assert {**our, **numbers} == their
    ours, theirs = (load_file(d / "adapter/adapter_model.safetensors") for d in (run, cols))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-5, err_msg=name)
    ours, theirs = (results(d / "eval.json")["world"] for d in (run, cols))
    assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-5)


def test_a_full_disk_is_one_line_and_leaves_what_can_be_resumed(
    cols, base, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = arguments(base, "run", "--method.name", "cols")
    write, calls = checkpoint.ocp.save, []

    def full(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 3:  # style adaptation, and both ends of an epoch
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "save", full)
        refused(command, "No space left on device; make room", capsys)
    assert run_main(train.main, [*command, "--resume"]) == 0
    assert differences(tmp_path / "run", cols) == []


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before_it(
    cols, base, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cols, tmp_path / "run")
    (tmp_path / "run/eval.json").unlink()
    (tmp_path / "run/checkpoints/6/manifest.json").write_text("{")
    command = arguments(base, "run", "--method.name", "cols", "--resume")
    assert run_main(train.main, command) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1 and "moved to 6-damaged, and checkpoint 3 is used" in told[0]
    assert differences(tmp_path / "run", cols) == []


def test_a_comparison_starts_every_method_from_one_style_phase(comparison, cols):
    table = results(comparison / "comparison.json")
    assert list(table) == [
        *("base", "commonest_answer", "sft", "sft_temperature", "sft_best_epoch"),
        *("sft_best_epoch_temperature", "cols", "cols_temperature"),
    ]
    for key in ("sft", "sft_best_epoch", "cols"):
        own, scaled = table[key]["world"], table[f"{key}_temperature"]["world"]
        assert scaled["temperature"] > 0 and "temperature" not in own
        assert scaled["accuracy"] == own["accuracy"]
        assert scaled["vocab"]["nll"] != own["vocab"]["nll"]
    for key, tasks in table.items():
        kept = results(comparison / key / "eval.json")
        assert {task: kept[task] for task in tasks} == tasks
        assert (comparison / key / "predictions/world.jsonl").is_file()
    # The method alone is the method within the comparison.
    assert table["cols"]["world"] == results(cols / "eval.json")["world"]
    assert lines(comparison / "sft", phase="style") == lines(comparison / "cols", phase="style")
    sft = lines(comparison / "sft", phase="finetune")
    assert all(line["loss"] == line["ce"] and line["cal"] == 0 for line in sft)


def predictions(folder, task="world"):
    return [json.loads(x) for x in (folder / f"predictions/{task}.jsonl").read_text().splitlines()]


def test_every_adapter_has_a_card_and_the_bases_tokenizer(comparison, cols, base):
    for folder in (comparison / "sft", comparison / "sft_best_epoch", comparison / "cols", cols):
        adapter = folder / "adapter"
        assert tokenizer_files(adapter) and tokenizer_key(base, adapter) == ""
        card = (adapter / "README.md").read_text()
        tested = results(folder / "eval.json")["world"]
        assert f"| world | options | {tested['n']} | {tested['accuracy']:.3f} |" in card
        assert "library_name: peft" in card and '"question": ' in card
        assert str(base.parent) not in card
    assert "Updates**: 8, of which 2 of style" in (cols / "adapter/README.md").read_text()


def test_a_temperatures_row_is_its_methods_scores_divided_by_it(comparison):
    """Against the softmax of the stored log-probabilities, whose options are single tokens."""
    for key in ("sft", "sft_best_epoch", "cols"):
        adapter = results(comparison / key / "adapter" / "calibration.json")
        temperature = adapter["temperature"]["value"]
        row = results(comparison / f"{key}_temperature" / "eval.json")["world"]
        assert row["temperature"] == temperature
        scaled = predictions(comparison / f"{key}_temperature")
        for own, with_it in zip(predictions(comparison / key), scaled, strict=True):
            scores = np.exp(np.array(own["option_logprobs"]) / temperature)
            np.testing.assert_allclose(with_it["option_probs"], scores / scores.sum(), rtol=1e-5)


def world_sizes(command):
    """The place of the first word of every option that sizes the world."""
    return [i for i, word in enumerate(command) if word.startswith("--world.")]


def test_a_comparison_holds_the_base_and_the_commonest_answer(comparison, base, tmp_path):
    """The base as eval.py scores it, without an adapter; the other from the rows alone."""
    argv = ["--model.path", str(base), "--run-dir", str(tmp_path / "base")]
    given = arguments(base, tmp_path)
    argv += [word for i in world_sizes(given) for word in given[i : i + 2]]
    assert run_main(eval_program.main, [*argv, "--evaluation.resamples", "100"]) == 0
    alone = results(tmp_path / "base" / "eval.json")["world"]
    assert results(comparison / "base" / "eval.json")["world"] == alone
    rows = predictions(comparison / "commonest_answer")
    assert {tuple(row["option_probs"]) for row in rows} == {tuple(rows[0]["option_probs"])}
    # 24 fine-tuning rows, and one more of each of the options
    counts = np.array(rows[0]["option_probs"]) * (24 + len(rows[0]["option_probs"]))
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert results(comparison / "commonest_answer" / "eval.json")["world"]["vocab"] is None


def test_the_base_is_looked_at_before_training_and_the_report_repeats_it(comparison):
    looked = results(comparison / "base.json")
    assert (looked["n"], looked["task"], looked["kind"]) == (WORLD.validation, "world", "texts")
    assert 0 <= looked["low"] <= looked["accuracy"] <= looked["high"] <= 1
    assert looked["chance"] == pytest.approx(1 / 8)
    rows = [json.loads(x) for x in (comparison / "base/validation.jsonl").read_text().splitlines()]
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(looked["accuracy"])
    assert base_words(looked)[0] in (comparison / "report.html").read_text()


def test_the_best_epoch_can_be_evaluated_asked_and_merged(comparison, tmp_path, capsys):
    best = comparison / "sft_best_epoch"
    argv = ["--run", str(best), "--run-dir", str(tmp_path / "eval")]
    assert run_main(eval_program.main, argv) == 0
    assert "SFT, best validation epoch, from" in capsys.readouterr().out
    again, first = (results(d / "eval.json") for d in (tmp_path / "eval", best))
    assert again["world"] == first["world"]
    question = results(comparison / "recommended.json")["question"]
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    asked = ["--predict", str(tmp_path / "questions.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    assert run_main(eval_program.main, ["--run", str(best), *asked]) == 0
    answer = results(tmp_path / "out.jsonl")
    assert answer["prediction"] in question["choices"]
    assert run_main(merge.main, ["--run", str(best), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged/config.json").is_file()


def test_the_last_lines_name_the_adapter_and_how_to_ask_it(comparison):
    text = write_report(comparison)
    chosen = results(comparison / "recommended.json")
    folder = comparison / chosen["method"]
    assert (folder / "adapter").is_dir()
    opening = "Best of this run, not recommended: " if chosen["not_better_than"] else "Take: "
    last = text[text.index(opening) :].splitlines()
    assert last[0].endswith(f"Adapter: {folder / 'adapter'}")
    numbers = results(comparison / f"{chosen['method']}_temperature" / "eval.json")["world"]
    two = f"{100 * numbers['accuracy']:.1f} % right, {100 * numbers['confidence']:.1f} % sure"
    assert two in " ".join(last)
    command = f"python eval.py --run {folder} --predict questions.jsonl --out answers.jsonl"
    assert last[-1].strip() == command
    assert json.loads(last[-3]) == chosen["question"]


def test_a_comparison_that_was_killed_between_rows_ends_with_the_same_bytes(
    comparison, base, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(comparison, run)
    for row in ("commonest_answer", "sft_temperature", "sft_best_epoch/adapter"):
        shutil.rmtree(run / row)
    missing = ("comparison.json", "recommended.json", "base.json", "sft/validation.jsonl")
    for file in (*missing, "cols/eval.json"):
        (run / file).unlink()
    # The checkpoints belong to the config they were made with, which the run folder is not in.
    command = arguments(base, run, "--compare", "sft,cols", "--resume")
    assert run_main(train.main, command) == 0
    # A method's config repeats its run, however often that was resumed.
    assert "resume: false" in (run / "sft" / "config.yaml").read_text()
    # Configs name their folder, which is another one.
    different = [name for name in differences(run, comparison) if not name.endswith("config.yaml")]
    assert different == []


def test_a_run_of_one_method_has_its_temperature_beside_it(cols, comparison):
    alone, within = cols / "temperature", comparison / "cols_temperature"
    assert results(alone / "eval.json")["world"] == results(within / "eval.json")["world"]
    assert results(cols / "recommended.json")["method"] == "."
    text = write_report(cols)
    assert "\n  + temperature " in text and f"--run {cols} --predict" in text


def one_answer(tmp_path):
    """Rows that a few updates teach: the right option is always the same word."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"question": f"where does row {n} work ?", "choices": ["acme", "hooli"], "answer": 0}
        for n in range(80)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data.task", "custom", "--data.path", str(file), "--data.prompt", "cloze"]


@pytest.mark.slow
def test_a_temperature_that_cannot_be_fitted_is_a_warning(base, tmp_path, capsys):
    run = tmp_path / "run"
    command = arguments(base, run)
    for i in reversed(world_sizes(command)):
        del command[i : i + 2]
    more = ["--method.name", "sft", "--training.epochs", "6", "--training.learning-rate", "0.05"]
    assert run_main(train.main, [*command, *one_answer(tmp_path), *more]) == 0
    told = capsys.readouterr()
    assert "warning: run: no temperature was fitted: all " in told.err
    assert "SFT: no temperature was fitted" in told.out
    assert "(without a temperature, for none was fitted)" in " ".join(told.out.split())
    assert not (run / "temperature").exists()


def several_tokens(tmp_path):
    file = tmp_path / "rows.jsonl"
    words = ["acme", "hooli", "globex", "wonka"]
    rows = [
        {
            "question": f"where does row {n} work ?",
            "choices": [f"{w} law" for w in words],
            "answer": n % 4,
        }
        for n in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data.task", "custom", "--data.path", str(file), "--data.prompt", "cloze"]


REFUSED = {
    "unknown key": (["--training.epoch", "3"], "training.epoch"),
    "wrong type": (["--lora.r", "two"], "lora.r"),
    "out of range": (["--lora.r", "0"], "lora.r"),
    "method and comparison": (
        ["--compare", "sft,cols", "--method.weight", "0.5"],
        "--compare and --method.weight",
    ),
    "method named twice": (["--method.name", "cols", "--method.term", "ecp"], "method.term"),
    "unknown method in a comparison": (["--compare", "sft,colz"], "colz"),
    "no such base": (["--model.path", "/nowhere/at/all"], "/nowhere/at/all"),
    "nothing to resume": (["--resume"], "nothing to resume"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(why, base, tmp_path, capsys):
    options, named = REFUSED[why]
    command = arguments(base, tmp_path / "run")
    if "--model.path" in options:
        del command[:2]
    refused(command + options, named, capsys)
    assert not (tmp_path / "run").exists()


def refused(command, named, capsys):
    assert run_main(train.main, command) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    assert named in told[-1]


def test_options_of_several_tokens_are_trained_in_options_space(base, tmp_path):
    spaces = ["--loss.space", "options", "--method.space", "options", "--method.name", "cols"]
    command = arguments(base, tmp_path / "run", *several_tokens(tmp_path), *spaces)
    assert run_main(train.main, command) == 0
    metrics = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= x["correct_fraction"] <= 1 for x in metrics if "correct_fraction" in x)
    assert any("correct_fraction" in x for x in metrics)
    numbers = json.loads((tmp_path / "run/eval.json").read_text())["custom"]
    assert numbers["gold_nll"] > 0 and not numbers["single_token_options"]


def test_a_folder_that_holds_something_is_refused_and_left_alone(base, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    refused(arguments(base, tmp_path), "exists and is not empty", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_needs_a_folder_and_the_same_config(cols, base, tmp_path, capsys):
    refused(["--resume"], "run_dir", capsys)
    shutil.copytree(cols, tmp_path / "run")
    command = arguments(base, tmp_path / "run", "--resume", "--method.name", "cols")
    refused([*command, "--training.learning-rate", "0.5"], "training.learning_rate", capsys)
    # Also when it was killed before its first checkpoint.
    shutil.rmtree(tmp_path / "run/checkpoints")
    shutil.rmtree(tmp_path / "run/style")
    refused([*command, "--seed", "7"], "seed is 7 but it was started with", capsys)
    assert (tmp_path / "run/eval.json").read_bytes() == (cols / "eval.json").read_bytes()
