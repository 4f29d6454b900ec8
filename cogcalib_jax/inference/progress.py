"""How far a pass over questions has come, for the person who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cogcalib_jax.console import progress_bar
from cogcalib_jax.data.batching import Batch


def watched(
    batches: Iterable[Batch],
    questions: int,
    sequences: int,
    bar: Callable[..., Any] = progress_bar,
) -> Iterator[Batch]:
    """`batches` themselves, with a bar over questions and the time left on stderr.

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
