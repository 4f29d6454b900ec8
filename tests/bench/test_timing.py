"""Times taken side by side, with a clock of our own."""

from collections import Counter

import numpy as np
import pytest

from cogcalib_jax.bench.command import interleave, median, paired_ratio


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


def test_a_ratio_is_the_median_of_those_within_rounds():
    a, b = np.array([3.0, 9.0, 5.0]), np.array([2.0, 1.0, 4.0])
    assert median(a).value == 5.0
    assert paired_ratio(a, b).value == 1.5


def test_what_slows_a_whole_round_does_not_reach_a_ratio():
    rng = np.random.default_rng(0)
    busy = rng.lognormal(0, 0.5, 101)
    own = rng.lognormal(0, 0.01, (2, 101))
    ratio = paired_ratio(1.1 * busy * own[0], busy * own[1])
    assert 1.09 < ratio.low < 1.1 < ratio.high < 1.11
    assert median(busy).high / median(busy).low > 1.1


@pytest.mark.parametrize("seed", range(3))
def test_interval_covers_the_median_of_the_source(seed):
    rng = np.random.default_rng(seed)
    covered = [
        (e := median(rng.exponential(size=41))).low <= np.log(2) <= e.high for _ in range(100)
    ]
    assert 0.88 <= np.mean(covered) <= 1.0
