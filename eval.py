"""Measure how far a model's confidence can be trusted: the same as `cogcalib eval`."""

import sys

from cogcalib_jax.cli import run_program
from cogcalib_jax.cli.programs import evaluate as main

if __name__ == "__main__":
    sys.exit(run_program(main))
