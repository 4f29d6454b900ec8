"""Measure how far a model's confidence can be trusted, or use it to answer; see README.md."""

from __future__ import annotations

import sys

from cogcalib_jax.distributed import ending_together, from_main, is_main
from cogcalib_jax.errors import plain_text, run_main
from cogcalib_jax.runs.answer import answer_questions
from cogcalib_jax.runs.dry_eval import dry_run_evaluation
from cogcalib_jax.runs.eval_config import load_evaluation
from cogcalib_jax.runs.evaluate import evaluate_run
from cogcalib_jax.runs.evaluation_text import evaluation_text
from cogcalib_jax.runs.score_file import score_predictions


def main(argv: list[str]) -> None:
    config = load_evaluation(argv, prog="eval.py", description=__doc__)
    if config.dry_run:
        print(plain_text(dry_run_evaluation(config)))
    elif config.predict is not None:
        print(plain_text(answer_questions(config)))
    elif config.predictions is not None:
        print(plain_text(evaluation_text(config, score_predictions(config, argv))))
    else:
        folder = evaluate_run(config, argv)
        text = from_main(lambda: evaluation_text(config, folder))
        if is_main():
            print(plain_text(text))


if __name__ == "__main__":
    sys.exit(run_main(ending_together(main)))
