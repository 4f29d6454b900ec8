"""One case of bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.reliability.place import Place

TRAIN, EVAL, BENCH = "train.py", "eval.py", "bench.py"
MERGE = "cogcalib_jax.hf.merge"
STUDY = "cogcalib study"


@dataclass(frozen=True)
class Case:
    """What is wrong, and how it is brought about."""

    what: str
    """its name in messages.md"""
    arrange: Callable[[Place], list[str]]
    """makes the files and returns the command line"""
    program: str = TRAIN
