"""A pass over a split returns every real row once, with its own result."""

import jax.numpy as jnp
import numpy as np
import pytest

from cogcalib_jax.data.batching import eval_batches, length_buckets
from cogcalib_jax.inference import predict
from cogcalib_jax.inference.predict import SplitPass
from tests.inference.tiny import questions, tiny_model
from tests.models.small import one_device


def test_rows_come_back_once_with_their_own_results():
    """11 rows in batches of 4: the last batch is filled up, and the filling is dropped."""
    rows = questions(11)
    model, lora = tiny_model()
    run = SplitPass(model, one_device(), lambda decoder, batch, x: (batch.lengths, batch.row * x))
    batches = eval_batches(rows, 4, length_buckets(rows.lengths))
    order, (lengths, scaled) = run(lora, batches, 2.5)
    assert sorted(order.tolist()) == list(range(11))
    np.testing.assert_array_equal(lengths, rows.lengths[order])
    np.testing.assert_allclose(scaled, order * 2.5)


def test_results_of_different_width_are_filled_with_nan():
    rows = [questions(4, options=(3,)), questions(4, options=(5,))]
    model, lora = tiny_model()
    run = SplitPass(model, one_device(), lambda decoder, batch: jnp.ones(batch.option_ids.shape))
    batches = [b for split in rows for b in eval_batches(split, 4, length_buckets(split.lengths))]
    _, ones = run(lora, batches)
    np.testing.assert_array_equal(np.isnan(ones).sum(-1), [2] * 4 + [0] * 4)


def test_a_batch_is_under_way_before_the_results_of_the_one_before_are_fetched():
    rows = questions(12)
    model, lora = tiny_model()
    run = SplitPass(model, one_device(), lambda decoder, batch: batch.lengths)
    events = []
    started, fetched = run._run, predict.fetch

    def batches():
        for number, batch in enumerate(eval_batches(rows, 4, length_buckets(rows.lengths))):
            events.append(f"made {number}")
            yield batch

    def start(*arguments):
        events.append("started")
        return started(*arguments)

    def fetch(array):
        events.append("fetched")
        return fetched(array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_run", start)
        patch.setattr(predict, "fetch", fetch)
        order, lengths = run(lora, batches())
    assert events == [
        *("made 0", "started", "made 1", "started", "fetched"),
        *("made 2", "started", "fetched", "fetched"),
    ]
    np.testing.assert_array_equal(lengths, rows.lengths[order])
