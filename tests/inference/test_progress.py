"""The bar over questions passes batches on and counts questions, not rows."""

from types import SimpleNamespace

import numpy as np

from cogcalib_jax.console import ProgressLines
from cogcalib_jax.inference import predict as progress


def test_questions_are_counted_whatever_their_options():
    seen = []

    class Recording(ProgressLines):
        def __init__(self, total, *rest, inner):
            super().__init__(total, *rest)
            seen.append(total)

        def update(self, n=1):
            self.n += n
            seen.append(self.n)

        def close(self):
            pass

    # Five questions of four options in rows of eight, the last four of which only fill.
    batches = [SimpleNamespace(weight=np.ones(8)) for _ in range(2)]
    batches.append(SimpleNamespace(weight=np.r_[np.ones(4), np.zeros(4)]))
    assert list(progress.watched(batches, 5, 20, Recording)) == batches
    assert seen == [5, 2, 4, 5]
