"""How many programs a run or an evaluation compiles, and how long that takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.data.batching import length_buckets
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.packing import pack, packed_batches
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.inference.open_ended import MAX_BUCKETS
from cogcalib_jax.inference.options import packed_logprobs
from cogcalib_jax.inference.passes import SplitPass
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import batch_parts

# An update takes this many times as long to compile as a pass that scores: 3 to 5 with the base of
# the world, stories260K and a model of 135M on two CPU cores. Both grow alike with a family, and
# neither grows with depth, for layers are scanned.
UPDATE_TO_PASS = 4


class Programs(NamedTuple):
    """What is compiled once each."""

    updates: int
    passes: int
    pass_seconds: float
    """to compile one pass, measured just now"""

    @property
    def seconds(self) -> float:
        """To compile all of them, one after the other."""
        return self.pass_seconds * (UPDATE_TO_PASS * self.updates + self.passes)

    @property
    def words(self) -> str:
        """The basis of `seconds`, in a sentence."""
        counted = f"{self.passes} passes"
        if self.updates:
            counted = f"{self.updates} updates, each {UPDATE_TO_PASS} times that, and {counted}"
        return (
            f"A pass that scores was compiled just now, in {self.pass_seconds:.1f} s; there are"
            f" {counted} to compile."
        )


def compile_seconds(
    model: FrozenModel,
    lora: nnx.State,
    mesh: Mesh,
    evaluation: EvaluationConfig,
    split: EncodedSplit,
) -> float:
    """Compile the pass that scores `split`, and return the seconds that took.

    model, lora: may be shapes without arrays. Nothing is run.
    """
    batch = next(iter(packed_batches(split, evaluation.batch_size, batch_parts(mesh))))
    scoring = SplitPass(model, mesh, packed_logprobs)
    start = time.perf_counter()
    scoring.compile(lora, batch, 1.0)
    return time.perf_counter() - start


def scoring_programs(splits: Iterable[EncodedSplit]) -> int:
    """Return how many programs score `splits`: one for each shape, and the loops that generate."""
    splits = [split for split in splits if split]
    shapes = {(packing.tokens, packing.scored) for packing in map(pack, splits)}
    generating = (
        len(length_buckets([len(e.prompt_ids) for e in split], MAX_BUCKETS))
        for split in splits
        if split.is_open
    )
    return len(shapes) + sum(generating)


def loss_programs(split: EncodedSplit) -> int:
    """Return how many programs give the losses of `split`: one for each padded length."""
    return len(length_buckets(split.lengths))
