"""Work ahead in a thread: same results, same order, errors where they belong."""

import threading

import pytest

from cogcalib_jax.data.prefetch import prefetch


def test_results_come_in_order_and_from_another_thread():
    threads = set()

    def square(n):
        threads.add(threading.get_ident())
        return n * n

    assert list(prefetch(square, range(20))) == [n * n for n in range(20)]
    assert threading.get_ident() not in threads and len(threads) == 1


def test_work_runs_ahead_but_only_so_far():
    done = []
    results = prefetch(lambda n: done.append(n) or n, range(100), ahead=3)
    assert next(results) == 0
    # Asked for one: that one, and at most three more of which one was started on its behalf.
    results.close()
    assert done[0] == 0 and len(done) <= 4


def test_an_error_is_raised_where_its_result_would_have_come():
    def fail_at_two(n):
        if n == 2:
            raise ValueError("two")
        return n

    results = prefetch(fail_at_two, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_no_items_no_results():
    assert list(prefetch(lambda n: n, [])) == []
