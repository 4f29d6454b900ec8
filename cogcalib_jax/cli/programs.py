"""The programs behind the commands `train`, `eval`, `predict`, `score`, `bench` and `plan`.

The work is imported after the options are read, so that help and errors in options need no
JAX. Benchmarks are loaded by name, because they lie above this room.
"""

from __future__ import annotations

from importlib import import_module

from cogcalib_jax.cli.eval_config import load_evaluation
from cogcalib_jax.cli.run_config import PROGRAM, load_training
from cogcalib_jax.cli.stored import resume_command
from cogcalib_jax.compile_cache import HELP, enable_compile_cache
from cogcalib_jax.errors import UserError, plain_text
from cogcalib_jax.files import program_words

TRAIN = f"""\
Fine-tune a language model with LoRA, compare methods, recommend one; see README.md.

  cogcalib train
  cogcalib train --config own_questions --model.path MODEL --data.path questions.csv
  cogcalib train --compare "sft,cols=0.3,focal(gamma=3)" --dry-run true
  cogcalib train --resume --run-dir runs/world-0

{HELP}"""
EVAL = f"""\
Measure how far a model's confidence can be trusted, or use it to answer; see README.md.

  cogcalib eval --run runs/world-0
  cogcalib eval --run runs/world-0/cols --task world:taught_form_b --by relation
  cogcalib eval --model.path BASE --adapter ADAPTER --data.task openbookqa
  cogcalib predict --run runs/world-0/cols --questions new.csv --out answers.jsonl

{HELP}"""
PREDICT = """\
usage: cogcalib predict --run RUN/METHOD --questions FILE --out FILE [OPTIONS]

Answer the questions of a file with confidence. The file is CSV, TSV, JSON, JSONL or Parquet and
needs no answers.

  --run RUN/METHOD        folder of a finished run, or --model.path BASE --adapter FOLDER
  --questions FILE        rows with a question and its choices
  --out FILE              receives one JSON line per question
  --abstain-below P       leave questions open whose confidence is lower
  --target-accuracy P     leave unsure questions open so that the rest is this accurate

Other options: cogcalib eval --help."""
SCORE = """\
usage: cogcalib score FILE [--by FIELD] [--run-dir FOLDER]

Score predictions made elsewhere, without a model; docs/evaluation.md lists the rows that are read.

Other options: cogcalib eval --help."""
BENCH = """\
usage: bench.py COMMAND [OPTIONS]

Measure the speed and memory of runs.

`train` times each method's training step, `eval` scores questions, and `plan` compiles a step for
accelerators that this machine lacks.

Commands, each with --help: """
BENCHMARKS = {
    "train": "bench.train_step",
    "eval": "bench.evaluation",
    "plan": "bench.plan",
}


def train(argv: list[str]) -> None:
    """Train and evaluate what `argv` asks for, write the report and print its text."""
    config, name = load_training(argv, TRAIN)
    from cogcalib_jax.cli.dry_run import dry_run_training
    from cogcalib_jax.cli.run_folder import resumable
    from cogcalib_jax.cli.train import train_run
    from cogcalib_jax.distributed import from_main, is_main
    from cogcalib_jax.report.report import write_report

    if config.dry_run:
        print(plain_text(dry_run_training(config, name)))
        return
    enable_compile_cache()
    folder = train_run(config, name, argv)
    with resumable(folder, resume_command(PROGRAM, folder)):
        report = from_main(lambda: write_report(folder))
    if is_main():
        print(plain_text(report))


def evaluate(argv: list[str]) -> None:
    """Evaluate, answer or score what `argv` asks for, and print the numbers."""
    config = load_evaluation(argv, prog="eval.py", description=EVAL)
    from cogcalib_jax.cli.evaluate import evaluate_run, evaluation_text
    from cogcalib_jax.cli.predict import answer_questions
    from cogcalib_jax.cli.results import score_predictions
    from cogcalib_jax.distributed import from_main, is_main

    enable_compile_cache()
    if config.predict is not None:
        print(plain_text(answer_questions(config)))
    elif config.predictions is not None:
        print(plain_text(evaluation_text(config, score_predictions(config, argv))))
    else:
        folder = evaluate_run(config, argv)
        text = from_main(lambda: evaluation_text(config, folder))
        if is_main():
            print(plain_text(text))


def predict(argv: list[str]) -> None:
    """Answer the questions of a file: `evaluate` with `--questions` for its `--predict`."""
    if not argv or argv[0] in ("--help", "-h"):
        print(PREDICT)
        return
    words = [
        "--predict" + word.removeprefix("--questions")
        if word.partition("=")[0] == "--questions"
        else word
        for word in argv
    ]
    if not any(word.partition("=")[0] == "--predict" for word in words):
        raise UserError("command line: questions is not given; expected --questions FILE")
    evaluate(words)


def score(argv: list[str]) -> None:
    """Score a file of predictions: `evaluate` with the file as its first word."""
    if not argv or argv[0] in ("--help", "-h"):
        print(SCORE)
        return
    evaluate(argv if argv[0].startswith("--") else ["--predictions", *argv])


def bench(argv: list[str]) -> None:
    """Run the benchmark that the first word names."""
    names = ", ".join(BENCHMARKS)
    if argv[:1] in (["--help"], ["-h"]):
        print(f"{BENCH}{names}")
        return
    if not argv or argv[0] not in BENCHMARKS:
        found = f"{argv[0]!r} is no command" if argv else "a command is missing"
        start = " ".join(program_words("bench.py"))
        raise UserError(f"bench.py: {found}; write {start} COMMAND (allowed: {names})")
    _measure(argv[0], argv[1:])


def plan(argv: list[str]) -> None:
    """Compile a step for a described topology."""
    _measure("plan", argv)


def _measure(name: str, argv: list[str]) -> None:
    module = import_module(f"cogcalib_jax.{BENCHMARKS[name]}")
    print(plain_text(getattr(module, f"bench_{name}")(argv)))
