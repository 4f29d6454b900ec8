"""Fine-tune with LoRA so that confidences keep their meaning: the same as `cogcalib train`."""

import sys

from cogcalib_jax.cli import run_program
from cogcalib_jax.cli.programs import train as main

if __name__ == "__main__":
    sys.exit(run_program(main))
