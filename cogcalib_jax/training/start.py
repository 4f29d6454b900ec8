"""What the start believes of the training rows, computed once before training.

The start is the model in which the gated phase begins. A term that compares with it reads these
arrays, so the training step holds no second model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx

from cogcalib_jax.console import say
from cogcalib_jax.data.batching import StartBelief, eval_batches, length_buckets
from cogcalib_jax.data.example import EncodedSplit
from cogcalib_jax.engine.forward import start_belief
from cogcalib_jax.engine.passes import SplitPass
from cogcalib_jax.method.config import Method
from cogcalib_jax.training.phase import Trainable

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
    vocabulary = trainable.model.merge(lora).config.vocab_size
    top = min(method.term.top, vocabulary)
    arrays = _allocate(encoded, method.space, top, scratch, in_memory)
    function = partial(start_belief, space=method.space, top=top)
    passed = SplitPass(trainable.model, trainable.mesh, function)
    for batch in eval_batches(encoded, batch_size, length_buckets(encoded.lengths)):
        _store(arrays, *passed(lora, [batch]))
    return arrays


def _allocate(
    encoded: EncodedSplit, space: str, top: int, scratch: Callable[[], Path], in_memory: int
) -> StartBelief:
    rows, positions = len(encoded), encoded.answer_tokens
    if space == "options":
        shapes = {"log_p": ((rows, 1, encoded.options), np.float32)}
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
            target[rows] = values
