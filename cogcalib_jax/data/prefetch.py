"""Work done ahead in a background thread, so that the device never waits for the host."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# One result to hand out and one under way: more would only hold more batches in memory.
AHEAD = 2


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD
) -> Iterator[Result]:
    """`function` of each item, in order, up to `ahead` of them computed before they are asked for.

    An exception of `function` is raised where its result would have been handed out. Leaving the
    iterator early ends the thread after the call that is under way.
    """
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(remaining, ahead))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
