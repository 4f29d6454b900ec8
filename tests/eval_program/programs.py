"""eval.py as the tests call it, and its files as they read them."""

import json

import eval as eval_program
from cogcalib_jax.errors import run_main
from tests.cli.small_base import arguments

# The last digits depend on how many rows are multiplied at once.
SCORING = ("--evaluation.batch-size", "16")


def run_eval(*argv):
    """The exit code of `python eval.py ARGV`."""
    return run_main(eval_program.main, list(map(str, argv)))


def small_world(base):
    """What says of `base` which world it is of; a run says that itself."""
    pairs = zip(*[iter(arguments(base, base))] * 2, strict=True)
    kept = ("--model.", "--data.", "--world.", "--evaluation.")
    return [part for pair in pairs if pair[0].startswith(kept) for part in pair]


def read(folder):
    return json.loads((folder / "eval.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]
