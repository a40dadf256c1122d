"""Intervals of differences, and exact tests."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy

from edgec.evaluate.metrics import mae, r2, snr_db, top1
from edgec.evaluate.paired import _draw, interval, mcnemar


def test_intervals_are_those_of_the_standard_error():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4000, 1)) ** 2
    error = 0.1 * rng.standard_normal((4000, 1)) + 0.02
    low, high = interval(reference, reference + error, mae.total)
    centre, spread = error.mean(), error.std() / np.sqrt(4000)
    assert [low, high] == pytest.approx([centre - 1.96 * spread, centre + 1.96 * spread], abs=0.15 * spread)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        reference, test = rng.random((60, 2)) < [0.8, 0.7], rng.random((60, 2)) < [0.7, 0.7]
        flags = [np.stack([right[:, 0], np.ones(60)], axis=1).astype(float) for right in (reference, test)]
        low, high = interval(*flags, top1.total, resamples=400, seed=seed)
        held += low <= -0.1 <= high
    assert 0.90 <= held / 300 <= 0.985


def test_the_seed_decides_the_draws():
    rng = np.random.default_rng(0)
    reference, test = rng.random((50, 1)), rng.random((50, 1))
    zero, again, one = (interval(reference, test, mae.total, seed=seed) for seed in (0, 0, 1))
    assert zero == again != one
    # The same on every machine.
    assert _draw(np.random.PCG64(7), 2, 5).tolist() == [[0, 2, 0, 2, 1], [1, 0, 1, 1, 2]]


def test_draws_are_even():
    drawn = _draw(np.random.PCG64(0), 5000, 20)
    assert (drawn.sum(axis=1) == 20).all()
    assert scipy.chisquare(drawn.sum(axis=0)).pvalue > 0.001
    assert drawn.var() == pytest.approx(1 - 1 / 20, rel=0.02)  # binomial


def test_what_has_no_interval():
    one = np.ones((1, 1))
    assert interval(one, one, mae.total) is None
    # Infinite in each draw: no noise.
    signal = np.stack([np.ones(5), np.zeros(5)], axis=1)
    assert interval(signal, signal, snr_db.total) is None
    # In some draws R2 has no spread to explain, and is 0 or 1 there.
    rare = np.array([[0.0, 1], [0, 1], [1, 1]])
    assert interval(rare, rare, r2.total) == (0, 0)


def test_memory_is_bounded():
    stats = np.random.default_rng(0).random((20_000, 2))
    tracemalloc.start()
    assert interval(stats, stats, top1.total, resamples=400) == (0, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


@settings(max_examples=50, deadline=None)
@given(lost=st.integers(0, 3000), won=st.integers(0, 3000))
def test_mcnemar_is_a_binomial_test(lost, won):
    reference = np.array([True] * lost + [False] * won + [True, False])
    test = np.array([False] * lost + [True] * won + [True, False])
    expected = scipy.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(reference, test) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand():
    reference, test = np.array(list(product([True, False], repeat=2))).T
    assert mcnemar(reference, test) == 1
    assert mcnemar(np.ones(4, bool), np.zeros(4, bool)) == 0.125
