"""Learning rates, numbers of updates and the moments at which epochs end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogcalib_jax.errors import FieldError
from cogcalib_jax.training.config import TrainingConfig
from cogcalib_jax.training.step import learning_rate_schedule

KINDS = ("linear", "cosine", "constant")


def rates(kind, steps, warmup, peak=2.0):
    schedule = learning_rate_schedule(peak, kind, steps, warmup)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_rises_to_its_peak_over_the_warm_up(kind):
    got = rates(kind, 50, 0.2)
    np.testing.assert_allclose(got[:10], np.arange(1, 11) * 2.0 / 10, rtol=1e-5)
    assert got.max() == pytest.approx(2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_then_falls_as_its_name_says(kind):
    got, after = rates(kind, 50, 0.2)[10:], np.arange(41) / 40
    wanted = {
        "linear": 1 - after,
        "cosine": (1 + np.cos(np.pi * after)) / 2,
        "constant": 1 + 0 * after,
    }
    np.testing.assert_allclose(got, 2.0 * wanted[kind], atol=1e-5)
    if kind != "constant":
        assert got[-1] == pytest.approx(0, abs=1e-6) and got[-2] > 0


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 30),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_every_update_of_any_run_moves(kind, steps, warmup):
    got = rates(kind, steps, warmup)[:-1]
    assert (got > 0).all() and (got <= 2.0 + 1e-6).all()


@given(
    rows=st.integers(1, 300),
    batch=st.integers(1, 40),
    epochs=st.floats(0.05, 6),
    cap=st.none() | st.integers(1, 50),
)
def test_epoch_ends_cut_the_updates_into_epochs(rows, batch, epochs, cap):
    config = TrainingConfig(epochs=epochs, batch_size=batch, max_steps=cap)
    total, ends = config.finetune_steps(rows), config.epoch_ends(rows)
    assert total >= 1 and (cap is None or total <= cap)
    assert ends == sorted(set(ends)) and ends[0] >= 1 and ends[-1] == total
    for end in ends[:-1]:
        # The first update after which a whole number of passes is complete.
        passes = end * batch // rows
        assert passes >= 1 and (end - 1) * batch < passes * rows
    if cap is None and batch <= rows:
        assert len(ends) == int(np.ceil(epochs)) or total < epochs * rows / batch + 1


def test_numbers_of_updates():
    config = TrainingConfig(epochs=2.5, batch_size=4)
    assert config.finetune_steps(10) == 7 and config.epoch_ends(10) == [3, 5, 7]
    assert config.style_updates(10) == 1
    assert TrainingConfig(epochs=40, batch_size=4).style_updates(10) == 5
    assert TrainingConfig(style_steps=0).style_updates(10) == 0
    assert TrainingConfig(max_steps=2).epoch_ends(1000) == [2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("max_steps", 0),
        ("refit_every", 0),
        ("validate_every", 0),
        ("style_steps", -1),
        ("batch_size", 0),
        ("accumulation", 3),
        ("probe_rows", -1),
        ("learning_rate", 0.0),
        ("style_learning_rate", 0.0),
        ("warmup_fraction", 1.0),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("log_every", 0),
    ],
)
def test_impossible_settings_are_refused_by_field(field, value):
    with pytest.raises(FieldError, match=field):
        TrainingConfig(**{field: value})
