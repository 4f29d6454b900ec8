"""Measure how far a model's confidence can be trusted, or use it to answer; see README.md."""

from __future__ import annotations

from cogcalib_jax.cli.presets import with_preset_file
from cogcalib_jax.compile_cache import HELP, enable_compile_cache
from cogcalib_jax.errors import UserError, plain_text
from cogcalib_jax.runs.eval_config import EvalConfig, load_evaluation

EXAMPLES = """\
  cogcalib eval --run runs/world-0
  cogcalib eval --run runs/world-0/cols --task world:taught_form_b --by relation
  cogcalib eval --model.path BASE --adapter ADAPTER --data.task openbookqa
  cogcalib predict --run runs/world-0/cols --questions new.csv --out answers.jsonl"""
PREDICT = """\
usage: cogcalib predict --run RUN/METHOD --questions FILE --out FILE [OPTIONS]

Answer the questions of a file with confidence. The file is CSV, TSV, JSON, JSONL or Parquet and
needs no answers.

  --run RUN/METHOD        folder of a finished run, or --model.path BASE --adapter FOLDER
  --questions FILE        rows with a question and its choices
  --out FILE              receives one JSON line a question
  --abstain-below P       leave questions open whose confidence is lower
  --target-accuracy P     leave as few open as make the rest this accurate on held-out questions

Other options: cogcalib eval --help."""


def main(argv: list[str]) -> None:
    """Evaluate, answer or score what `argv` asks for, and print the numbers."""
    description = f"{__doc__}\n\n{EXAMPLES}\n\n{HELP}"
    config = load_evaluation(with_preset_file(argv), prog="eval.py", description=description)
    _evaluate(config, argv)


def _evaluate(config: EvalConfig, argv: list[str]) -> None:
    # Imported here: they bring JAX, which help and a refused option need not wait for.
    from cogcalib_jax.distributed import from_main, is_main
    from cogcalib_jax.runs.answer import answer_questions
    from cogcalib_jax.runs.dry_eval import dry_run_evaluation
    from cogcalib_jax.runs.evaluate import evaluate_run
    from cogcalib_jax.runs.evaluation_text import evaluation_text
    from cogcalib_jax.runs.score_file import score_predictions

    if config.dry_run:
        print(plain_text(dry_run_evaluation(config)))
        return
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
    """Answer the questions of a file: `main` with `--questions` for its `--predict`."""
    if not argv or argv[0] in ("--help", "-h"):
        print(PREDICT)
        return
    words = ["--predict" + w.removeprefix("--questions") if _asks(w) else w for w in argv]
    if not any(word.partition("=")[0] == "--predict" for word in words):
        raise UserError("command line: questions is not given; expected --questions FILE")
    main(words)


def _asks(word: str) -> bool:
    return word.partition("=")[0] == "--questions"


def score(argv: list[str]) -> None:
    """Score a file of predictions: `main` with the file as its first word."""
    if not argv or argv[0] in ("--help", "-h"):
        print(
            "usage: cogcalib score FILE [--by FIELD] [--run-dir FOLDER]\n\nScore predictions made"
            " elsewhere, without a model; docs/evaluation.md lists the rows that are read.\n\n"
            "Other options: cogcalib eval --help."
        )
        return
    main(argv if argv[0].startswith("--") else ["--predictions", *argv])
