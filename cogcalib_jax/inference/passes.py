"""A function of a batch, jitted once and run over a whole split, with its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cogcalib_jax.console import progress_bar
from cogcalib_jax.data.batching import Batch
from cogcalib_jax.data.packing import PackedBatch
from cogcalib_jax.models.parameters import FrozenModel
from cogcalib_jax.sharding import fetch, shard_batch


class SplitPass:
    """A function `(decoder, batch, *scalars) -> pytree of [batch, ...]`, compiled once a shape.

    `batch.row` and `batch.weight` are `[batch]`, or `[batch, questions]` where a row holds several
    questions; results begin with the same axes.

    With `members`, LoRA parameters carry a leading axis of members and results a last one: all
    members read the one base, which is neither copied nor read once for each.
    """

    def __init__(
        self,
        model: FrozenModel,
        mesh: Mesh,
        function: Callable[..., Any],
        *,
        members: bool = False,
    ):
        self._frozen = model.frozen
        self._mesh = mesh

        def run(lora: nnx.State, frozen: nnx.State, batch: Batch, *scalars: Any) -> Any:
            def one(lora: nnx.State) -> Any:
                return function(nnx.merge(model.graphdef, lora, frozen), batch, *scalars)

            return jax.vmap(one, out_axes=-1)(lora) if members else one(lora)

        self._run = jax.jit(run)

    def compile(self, lora: nnx.State, batch: Batch | PackedBatch, *scalars: float) -> None:
        """Compile the function for the shape of `batch` and run nothing; `lora` and the model may
        be shapes without arrays."""
        self._run.lower(lora, self._frozen, shard_batch(self._mesh, batch), *scalars).compile()

    @property
    def compiled_shapes(self) -> int:
        """The number of batch shapes that the function was compiled for."""
        return self._run._cache_size()

    def __call__(
        self, lora: nnx.State, batches: Iterable[Batch | PackedBatch], *scalars: float | jax.Array
    ) -> tuple[np.ndarray, Any]:
        """Return row numbers `[n]` and results `[n, ...]` of all real rows, in the batches' order.

        A batch's results are fetched when the next one is under way, so that the host makes batches
        while devices compute. Results of different batches are padded with NaN to the widest second
        axis (questions may have 3, 4 or 5 options).
        """
        rows, outputs = [], []
        started = None
        for batch in batches:
            keep = batch.weight > 0
            rows.append(batch.row[keep])
            output = self._run(lora, self._frozen, shard_batch(self._mesh, batch), *scalars)
            if started is not None:
                outputs.append(_fetch_real(*started))
            started = output, keep
        outputs.append(_fetch_real(*started))
        return np.concatenate(rows), jax.tree.map(lambda *xs: _concatenate(xs), *outputs)


def _fetch_real(output: Any, keep: np.ndarray) -> Any:
    return jax.tree.map(lambda x: fetch(x)[keep], output)


def _concatenate(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    if len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate(arrays)
    width = max(a.shape[1] for a in arrays)
    further = [(0, 0)] * (arrays[0].ndim - 2)
    return np.concatenate(
        [
            np.pad(a, [(0, 0), (0, width - a.shape[1]), *further], constant_values=np.nan)
            for a in arrays
        ]
    )


def watched(
    batches: Iterable[Batch],
    questions: int,
    sequences: int,
    bar: Callable[..., Any] = progress_bar,
) -> Iterator[Batch]:
    """Yield `batches`, with a bar over questions and the time left on stderr.

    sequences: rows of all batches together, several a question where options are scored one by
    one. bar: makes the bar, with the arguments of `progress_bar`. A batch counts as done when the
    next one is asked for.
    """
    done, shown = 0.0, 0
    with bar(questions, "scoring", "question", inner=True) as progress:
        for batch in batches:
            yield batch
            done += float(batch.weight.sum())
            whole = round(questions * done / sequences)
            progress.update(whole - shown)
            shown = whole
