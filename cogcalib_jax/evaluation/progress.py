"""How far a pass over questions has come, for the person who waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from cogcalib_jax.data.batching import Batch
from cogcalib_jax.distributed import is_main

QUIET_SECONDS = 3.0
"""A pass shorter than this shows nothing."""


def watched(batches: Iterable[Batch], questions: int, sequences: int) -> Iterator[Batch]:
    """`batches` themselves, with a bar over questions and the time left on stderr.

    sequences: rows of all batches together, several a question where options are scored one by
    one. A batch counts as done when the next one is asked for.
    """
    done = 0.0
    bar = tqdm(
        total=questions,
        desc="scoring",
        unit="question",
        delay=QUIET_SECONDS,
        leave=False,
        disable=not is_main(),
    )
    with bar:
        for batch in batches:
            yield batch
            done += float(batch.weight.sum())
            bar.update(round(questions * done / sequences) - bar.n)
