"""Measure what runs cost: the same as `cogcalib bench`."""

import sys

from cogcalib_jax.cli import run_program
from cogcalib_jax.cli.programs import bench as main

if __name__ == "__main__":
    sys.exit(run_program(main))
