"""Beliefs of the start about training and anchor rows, computed once before training.

The start is the model in which the gated phase begins. A term that compares with it reads these
arrays, so the training step holds no second model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx

from cogcalib_jax.console import say
from cogcalib_jax.data.batching import (
    Batch,
    StartBelief,
    eval_batches,
    length_buckets,
    prompt_lengths,
    question_batches,
    tree_batches,
    without_answers,
)
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.inference.forward import start_belief
from cogcalib_jax.inference.passes import SplitPass
from cogcalib_jax.method.config import Space
from cogcalib_jax.method.loss import Method
from cogcalib_jax.method.terms import Term
from cogcalib_jax.training.state import AnchorRows, Trainable

# Above this many bytes the arrays lie in files that are mapped into memory.
IN_MEMORY = 4 * 2**30


def start_beliefs(
    trainable: Trainable,
    method: Method,
    lora: nnx.State,
    encoded: EncodedSplit,
    batch_size: int,
    scratch: Callable[[], Path],
    in_memory: int = IN_MEMORY,
) -> StartBelief | None:
    """Return the start's beliefs by row of `encoded`; None if the method's term asks for none.

    Args:
        lora: the start's LoRA parameters.
        scratch: gives the folder of the arrays if they take more than `in_memory` bytes.
    """
    if method.term is None or not method.term.needs_start:
        return None
    rule = trainable.branching(encoded, trainable.loss.space, method.space)
    positions = encoded.answer_tokens
    if rule is None:
        batches = eval_batches(encoded, batch_size, length_buckets(encoded.lengths))
    else:
        buckets = length_buckets(encoded.tree_lengths)
        batches = tree_batches(encoded, batch_size, buckets, rule)
        positions = encoded.scored_tokens.max()
    shape = len(encoded), int(positions), encoded.options
    return _beliefs(trainable, method.term, method.space, lora, batches, shape, scratch, in_memory)


def anchors_with_start(
    anchors: AnchorRows,
    trainable: Trainable,
    space: Space,
    lora: nnx.State,
    batch_size: int,
    scratch: Callable[[], Path],
    in_memory: int = IN_MEMORY,
) -> AnchorRows:
    """Return `anchors` with the start's beliefs of their answers' first token, or of their options
    in options space, if their term asks for those; other arguments as for `start_beliefs`."""
    term, questions = anchors.config.build().term, anchors.questions
    if not term.needs_start:
        return anchors
    rule = trainable.branching(questions, space)
    if rule is None:
        buckets = length_buckets(prompt_lengths(questions))
        batches = question_batches(questions, batch_size, buckets)
    else:
        buckets = length_buckets(questions.tree_lengths)
        batches = map(without_answers, tree_batches(questions, batch_size, buckets, rule))
    shape = len(questions), 1, questions.options
    start = _beliefs(trainable, term, space, lora, batches, shape, scratch, in_memory)
    return replace(anchors, start=start)


def _beliefs(
    trainable: Trainable,
    term: Term,
    space: Space,
    lora: nnx.State,
    batches: Iterable[Batch],
    shape: tuple[int, int, int],
    scratch: Callable[[], Path],
    in_memory: int,
) -> StartBelief:
    """The beliefs that `term` asks for; shape: rows, positions and options of all `batches`."""
    vocabulary = trainable.model.merge(lora).config.vocab_size
    top = min(term.top, vocabulary)
    arrays = _allocate(shape, space, top, scratch, in_memory)
    function = partial(start_belief, space=space, top=top)
    passed = SplitPass(trainable.model, trainable.mesh, function)
    for batch in batches:
        _store(arrays, *passed(lora, [batch]))
    return arrays


def _allocate(
    shape: tuple[int, int, int], space: Space, top: int, scratch: Callable[[], Path], in_memory: int
) -> StartBelief:
    rows, positions, options = shape
    if space == "options":
        shapes = {"log_p": ((rows, 1, options), np.float32)}
    else:
        shapes = {
            "log_p": ((rows, positions, top), np.float32),
            "ids": ((rows, positions, top), np.int32),
            "rest": ((rows, positions), np.float32),
        }
    size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    folder = scratch() if size > in_memory else None
    place = "memory" if folder is None else f"files in {folder}"
    say(f"   the start's beliefs of {rows:,} rows: {size / 1e6:.1f} MB in {place}")
    if folder is None:
        return StartBelief(**{name: np.zeros(*one) for name, one in shapes.items()})
    folder.mkdir(parents=True, exist_ok=True)
    return StartBelief(
        **{
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
            for name, (shape, dtype) in shapes.items()
        }
    )


def _store(arrays: StartBelief, rows: np.ndarray, found: StartBelief) -> None:
    for target, values in zip(arrays, found, strict=True):
        if target is not None:
            # Trees of another padded length have fewer scored positions.
            target[rows, : values.shape[1]] = values
