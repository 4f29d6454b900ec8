"""Bad run folders."""

import os
import shutil
from pathlib import Path

from cogcalib_jax.cli.eval_config import load_evaluation
from cogcalib_jax.cli.run_folder import write_config
from cogcalib_jax.hf.adapter import base_hash
from tests.cli.small_base import arguments
from tests.reliability.case import EVAL, MERGE, Case
from tests.reliability.place import Place, link_out, write


def _resume(damage=None, *more: str):
    """train.py --resume of a run that `damage` was done to."""

    def arrange(place: Place) -> list[str]:
        run = place.run()
        if damage is not None:
            damage(run)
        return arguments(Path("base"), run, "--method.name", "sft", "--resume", *more)

    return arrange


def run(damage, *more: str):
    """eval.py of a run that `damage` was done to."""

    def arrange(place: Place) -> list[str]:
        folder = place.run()
        damage(folder)
        return ["--run", str(folder), "--run-dir", "new", *more]

    return arrange


def merge(damage):
    """A merge of a run that `damage` was done to."""

    def arrange(place: Place) -> list[str]:
        folder = place.run()
        damage(folder)
        return ["--run", str(folder), "--model.path", "base", "--out", "merged"]

    return arrange


def _without_weights(folder: Path) -> None:
    (folder / "config.yaml").unlink()
    write(folder / "eval.json", {})


def predict(damage):
    """eval.py --predict with a run that `damage` was done to."""

    def arrange(place: Place) -> list[str]:
        damage(place.run())
        write(Path("q.jsonl"), [{"question": "x", "choices": ["a", "b"]}])
        return ["--run", "run", "--predict", "q.jsonl", "--out", "answers.jsonl"]

    return arrange


def _resume_evaluation(place: Place) -> list[str]:
    argv = place.evaluate()
    write_config(Path("new"), load_evaluation(argv, prog="", description=""))
    write(Path("new/eval.json"), '{"world": {"n": 16')
    return [*argv, "--resume"]


def _no_temperature(folder: Path) -> None:
    base = {"hash": base_hash(Path("base")), "name": "base"}
    write(folder / "adapter" / "calibration.json", {"base": base})


def _remove(path: Path) -> Path:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    return path


def _fill_new(place: Place) -> list[str]:
    write(Path("new/notes.txt"), "mine")
    return place.train()


def _below_a_file(place: Place) -> list[str]:
    write(Path("taken"), "mine")
    return place.train("--run-dir", "taken/run")


def _fill_merged(place: Place) -> list[str]:
    write(Path("merged/notes.txt"), "mine")
    return merge(lambda run: None)(place)


RUNS = [
    Case("a folder that is no run", lambda p: ["--run", str(p.base()), "--run-dir", "new"], EVAL),
    Case(
        "a row of a comparison that kept no weights",
        predict(_without_weights),
        EVAL,
    ),
    Case("a run that is not there", lambda p: ["--run", "none", "--run-dir", "new"], EVAL),
    Case("a run that is not finished", run(lambda r: shutil.rmtree(r / "adapter")), EVAL),
    Case(
        "a run of another version",
        run(lambda r: write(r / "config.yaml", "warp: 9\nseed: 1\n")),
        EVAL,
    ),
    Case(
        "a run whose config.yaml is not UTF-8",
        run(lambda r: write(r / "config.yaml", b"\xff")),
        EVAL,
    ),
    Case(
        "a run whose config.yaml is a folder",
        run(lambda r: _remove(r / "config.yaml").mkdir()),
        EVAL,
    ),
    Case(
        "a fitted temperature that is damaged",
        predict(_no_temperature),
        EVAL,
    ),
    Case("a run folder that holds something", _fill_new),
    Case("a run folder below a file", _below_a_file),
    Case("resuming another config", _resume(None, "--lora.lora-alpha", "3")),
    Case("resuming a run without its config.yaml", _resume(lambda r: _remove(r / "config.yaml"))),
    Case(
        "resuming a run whose command.txt is not UTF-8",
        _resume(lambda r: write(r / "command.txt", b"python \xff")),
    ),
    Case(
        "resuming a run whose command.txt is a folder",
        _resume(lambda r: _remove(r / "command.txt").mkdir()),
    ),
    Case(
        "resuming a run whose checkpoints are a file",
        _resume(lambda r: write(_remove(r / "style/checkpoints"), "mine")),
    ),
    Case(
        "resuming a run with a pipe in it",
        _resume(lambda r: os.mkfifo(r / "style" / "metrics.jsonl")),
    ),
    Case("resuming an evaluation whose results are cut off", _resume_evaluation, EVAL),
    Case("resuming a run with a link out of it", _resume(lambda r: link_out(r / "command.txt"))),
    Case(
        "evaluating a run whose adapter links out of it",
        run(lambda r: link_out(r / "adapter")),
        EVAL,
    ),
    Case("resuming an evaluation that was none", lambda p: p.evaluate("--resume"), EVAL),
    Case(
        "merging a run whose config.yaml lacks fields",
        merge(lambda r: write(r / "config.yaml", "seed: 1\n")),
        MERGE,
    ),
    Case(
        "merging a run whose results are cut off",
        merge(lambda r: write(r / "eval.json", '{"world": {')),
        MERGE,
    ),
    Case(
        "merging a run whose results link out of it",
        merge(lambda r: link_out(write(r / "eval.json", {}))),
        MERGE,
    ),
    Case(
        "merging a run whose adapter links out of it",
        merge(lambda r: link_out(r / "adapter")),
        MERGE,
    ),
    Case("merging into a folder that holds something", _fill_merged, MERGE),
]
