"""Times of two things in turn."""

import time

import numpy as np
import pytest

from edgec.measure.paired import paired_ms, ratio_interval


def test_which_one_is_first_changes_from_pair_to_pair():
    calls = []
    times = paired_ms(lambda: calls.append("a"), lambda: calls.append("b"), pairs=4, warmup=2)
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab" + "ba"
    assert times.shape == (4, 2)
    assert (times >= 0).all()


def test_each_column_is_its_own():
    times = paired_ms(lambda: time.sleep(0.002), lambda: None, pairs=5, warmup=0)
    assert (times[:, 0] >= 2).all()
    assert (times[:, 1] < times[:, 0]).all()


def test_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        paired_ms(lambda: 1 / 0, lambda: None, pairs=1)


def test_the_ratio_is_that_of_pairs():
    # What else the machine does hits both times of a pair, and no ratio.
    busy = np.array([1.0, 1.0, 30.0, 1.0, 7.0])
    assert ratio_interval(6 * busy, 3 * busy) == (2, 2, 2)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        noise = rng.lognormal(sigma=0.2, size=(40, 2))
        middle, low, high = ratio_interval(3 * noise[:, 0], noise[:, 1], seed=seed)
        assert low <= middle <= high
        held += low <= 3 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_the_same_times_give_the_same_interval():
    times = np.random.default_rng(1).lognormal(size=(40, 2))
    assert ratio_interval(*times.T) == ratio_interval(*times.T)
    assert ratio_interval(*times.T) != ratio_interval(*times.T, seed=1)
