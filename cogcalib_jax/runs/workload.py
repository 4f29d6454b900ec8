"""How much work a run or an evaluation is, and how long that takes at a measured rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogcalib_jax.data.batching import length_buckets
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.data.packing import pack
from cogcalib_jax.data.stream import TrainStream
from cogcalib_jax.inference.config import EvaluationConfig
from cogcalib_jax.models.config import DecoderConfig, LoraConfig
from cogcalib_jax.models.decoder import Remat
from cogcalib_jax.plan.flops import forward_flops, pretraining_flops, update_flops
from cogcalib_jax.plan.speed import product_rate
from cogcalib_jax.sharding import batch_parts
from cogcalib_jax.world.base import corpus_batches

# Seconds beside operations: loading, tracing, reading what is compiled, bootstrap, checkpoints,
# pictures. Measured as CPU time of suites of configs/world.yaml with next to no updates
# (training.epochs 0.2; 1, 3 and 5 methods), compiled steps being there.
RUN_SECONDS, METHOD_SECONDS = 14, 4


@dataclass(frozen=True)
class Work:
    """Operations, by how they can be done."""

    at_once: float = 0.0
    """over whole texts"""
    by_token: float = 0.0
    """while generating, a token of every answer at a time"""

    def __add__(self, other: Work) -> Work:
        return Work(self.at_once + other.at_once, self.by_token + other.by_token)

    def __mul__(self, number: float) -> Work:
        return Work(self.at_once * number, self.by_token * number)


class Padding(NamedTuple):
    """What batches of a phase are padded to."""

    lengths: tuple[int, ...]
    real: float
    """share of the computed tokens that are real"""


@dataclass(frozen=True)
class Workload:
    """Counts the work of one model; padding is computed like any token."""

    config: DecoderConfig
    lora: LoraConfig | None
    evaluation: EvaluationConfig

    def updates(
        self, stream: TrainStream, split: EncodedSplit, steps: int, classes: int, remat: Remat
    ) -> tuple[Work, Padding]:
        """Of `steps` updates on `split`, and how its batches are padded; from the first epoch, or
        as much of it as is trained on."""
        size = len(stream.rows(0))
        epoch = range(min(steps, -(-len(split) // size)))
        total, real, computed = 0.0, 0, 0
        answers = np.array([len(e.completion_ids[e.answer]) for e in split])
        inputs = np.array([len(e.prompt_ids) for e in split]) + answers - 1
        for step in epoch:
            length = stream.padded_length(step)
            real += int(inputs[stream.rows(step)].sum())
            computed += length * size
            lengths, scored = [length] * size, size * split.answer_tokens
            total += self.update(lengths, scored, classes, remat).at_once
        lengths = tuple(sorted({stream.padded_length(step) for step in epoch}))
        return Work(total / len(epoch) * steps), Padding(lengths, real / computed)

    def update(self, lengths: list[int], scored: int, classes: int, remat: Remat) -> Work:
        """Of one update on rows of these lengths with `scored` positions in all."""
        assert self.lora is not None  # what is trained is the adapter
        total = update_flops(self.config, self.lora, lengths, scored, classes)
        if remat == "layer":
            # The layers are computed twice on the way forward; the head is not.
            total += forward_flops(self.config, self.lora, lengths, 0, classes)
        return Work(total)

    def losses(self, split: EncodedSplit) -> Work:
        """Of the loss of every right answer, as for the threshold."""
        buckets = np.array(length_buckets(split.lengths))
        padded = buckets[np.searchsorted(buckets, split.lengths)]
        scored = len(split) * split.answer_tokens
        return Work(forward_flops(self.config, self.lora, padded, scored, self.config.vocab_size))

    def scores(self, split: EncodedSplit) -> Work:
        """Of the scores of every option, each prompt computed once."""
        packing = pack(split)
        rows = len(packing.rows)
        scored = rows * packing.scored
        return Work(
            forward_flops(
                self.config, self.lora, [packing.tokens] * rows, scored, self.config.vocab_size
            )
        )

    def answers(self, split: EncodedSplit, confidences: bool) -> Work:
        """Of greedy answers of full length to open questions; with `confidences` also the samples,
        P(True) and the reference's probability."""
        settings = self.evaluation.open
        prompts = np.array([len(e.prompt_ids) for e in split])
        vocab = self.config.vocab_size
        read = forward_flops(self.config, self.lora, prompts, len(prompts), vocab)
        n = len(prompts) * (settings.max_new_tokens - 1)
        written = forward_flops(self.config, self.lora, np.ones(n), n, vocab)
        passes = 1 + settings.samples if confidences else 1
        work = Work(read, written) * passes
        if confidences:
            work += self.scores(split) * (2 if settings.p_true else 1)
        return work

    def evaluating(self, split: EncodedSplit) -> Work:
        """Of all that is asked of a test set."""
        return self.answers(split, True) if split.is_open else self.scores(split)


def pretraining(config: DecoderConfig, corpus: list[list[int]], batch_size: int) -> Work:
    """Of the world's base."""
    lengths = [
        length
        for batch in corpus_batches(corpus, batch_size)
        for length in [batch.input_ids.shape[1]] * len(batch.input_ids)
    ]
    return Work(pretraining_flops(config, lengths))


@dataclass(frozen=True)
class Rates:
    """Operations a second."""

    at_once: float
    by_token: float
    shape: tuple[int, int, int]
    """(rows, width, inner) of the products that were measured for `at_once`"""

    def seconds(self, work: Work) -> float:
        return work.at_once / self.at_once + work.by_token / self.by_token


def measure(
    config: DecoderConfig,
    mesh: Mesh,
    dtype: jnp.dtype,
    tokens: float,
    answers: int | None = None,
) -> Rates:
    """Rates of this model's products on `mesh`, on all devices together.

    tokens: computed at a time, over all devices. answers: generated at a time; None where nothing
    is generated.
    """
    parts = batch_parts(mesh)
    rows = max(1, round(tokens / parts))
    shape = (rows, config.hidden_size, config.intermediate_size)
    at_once = product_rate(mesh, *shape, dtype)
    by_token = at_once
    if answers is not None:
        by_token = product_rate(mesh, max(1, answers // parts), *shape[1:], dtype)
    return Rates(at_once, by_token, shape)
