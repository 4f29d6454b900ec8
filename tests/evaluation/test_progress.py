"""The bar over questions passes batches on and counts questions, not rows."""

from types import SimpleNamespace

import numpy as np

from cogcalib_jax.evaluation import progress


def test_questions_are_counted_whatever_their_options(monkeypatch):
    bars = []

    class Recording(progress.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False})
            bars.append(self)
            self.seen = []

        def update(self, n=1):
            self.n += n
            self.seen.append(self.n)

    monkeypatch.setattr(progress, "tqdm", Recording)
    # Five questions of four options in rows of eight, the last four of which only fill.
    batches = [SimpleNamespace(weight=np.ones(8)) for _ in range(2)]
    batches.append(SimpleNamespace(weight=np.r_[np.ones(4), np.zeros(4)]))
    assert list(progress.watched(batches, 5, 20)) == batches
    assert bars[0].seen == [2, 4, 5]
    assert bars[0].total == 5
