"""Times taken side by side, with a clock of our own."""

from collections import Counter

import numpy as np
import pytest

from cogcalib_jax.experiments.timing import interleave, median, median_ratio


class Clock:
    """Advances by what the work asks for."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, name, seconds, calls):
        def take(number):
            calls.append((number, name))
            self.now += seconds(number)

        return take


def run(rounds, warmup, **seconds):
    clock, calls = Clock(), []
    work = {name: clock.work(name, f, calls) for name, f in seconds.items()}
    return interleave(work, rounds, warmup=warmup, clock=clock), calls


def test_every_piece_runs_once_a_round_in_changing_order():
    _, calls = run(50, 2, a=lambda n: 1.0, b=lambda n: 1.0, c=lambda n: 1.0)
    orders = [tuple(name for _, name in calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert [number for number, _ in calls] == [n for n in range(52) for _ in range(3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(Counter(orders)) == 6


def test_warm_up_is_left_out():
    seconds, _ = run(6, 3, a=lambda n: 100.0 if n < 3 else 1.0 + n)
    np.testing.assert_allclose(seconds["a"], [4, 5, 6, 7, 8, 9])


def test_ratio_is_that_of_medians():
    a, b = np.array([3.0, 9.0, 5.0]), np.array([2.0, 1.0, 4.0])
    assert median(a).value == 5.0
    assert median_ratio(a, b).value == 2.5


def test_noise_common_to_a_round_leaves_the_interval_of_a_ratio_narrow():
    """Drawn for the two apart, rounds would give the ratio at least the interval of one median."""
    rng = np.random.default_rng(0)
    busy = rng.lognormal(0, 0.5, 101)
    own = rng.lognormal(0, 0.01, (2, 101))
    ratio = median_ratio(1.1 * busy * own[0], busy * own[1])
    alone = median(busy)
    assert ratio.low < 1.1 < ratio.high
    assert np.log(ratio.high / ratio.low) < 0.2 * np.log(alone.high / alone.low)


@pytest.mark.parametrize("seed", range(3))
def test_interval_covers_the_median_of_the_source(seed):
    rng = np.random.default_rng(seed)
    covered = [
        (e := median(rng.exponential(size=41))).low <= np.log(2) <= e.high for _ in range(100)
    ]
    assert 0.88 <= np.mean(covered) <= 1.0
