"""How programs start: help and refused options need no JAX, and compiled programs are kept."""

import subprocess
import sys

import pytest

# Imported by help alone, each of these would cost a user a good part of a second or more.
SLOW = ("jax", "flax", "optax", "orbax", "transformers", "torch", "datasets", "scipy", "matplotlib")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "--help-all"], 0),
        (["eval", "--help"], 0),
        (["predict", "--help"], 0),
        (["bench", "--help"], 0),
        (["train", "--no.such.option", "1"], 2),
        (["eval", "--no.such.option", "1"], 2),
    ],
)
def test_help_and_an_unknown_option_need_no_jax(argv, code):
    program = (
        "import sys\n"
        "from cogcalib_jax.cli import main, run_program\n"
        "code = 0\n"
        "try:\n"
        "    code = run_program(main)\n"
        "except SystemExit as ended:\n"
        "    code = ended.code\n"
        f"print('loaded', [name for name in {SLOW} if name in sys.modules])\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("loaded []\n")
