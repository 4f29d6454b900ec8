"""Measure how far a model's confidence can be trusted, on test questions; see README.md."""

from __future__ import annotations

import sys

from cogcalib_jax.errors import run_main
from cogcalib_jax.runs.eval_config import load_evaluation
from cogcalib_jax.runs.evaluate import evaluate_run, results_text


def main(argv: list[str]) -> None:
    config = load_evaluation(argv, prog="eval.py", description=__doc__)
    print(results_text(config, evaluate_run(config, argv)))


if __name__ == "__main__":
    sys.exit(run_main(main))
