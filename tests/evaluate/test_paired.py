"""Intervals of differences, and exact tests."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy

from edgec.evaluate.metrics import mae, r2, snr_db, top1
from edgec.evaluate.paired import _draw, draws, interval, mcnemar, score_limit


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


def test_the_confidence_decides_the_width():
    rng = np.random.default_rng(0)
    reference, test = rng.random((400, 1)), rng.random((400, 1))
    drawn = draws(reference, test, mae.total)
    assert interval(reference, test, mae.total) == interval(reference, test, mae.total, confidence=0.95)
    for confidence in (0.5, 0.95, 0.999):
        low, high = interval(reference, test, mae.total, confidence=confidence)
        assert ((low <= drawn) & (drawn <= high)).mean() == pytest.approx(confidence, abs=1 / 2000)


@pytest.mark.parametrize(
    ("lost", "won", "count", "low", "high"), [(1, 7, 21, -0.517, -0.026), (0, 0, 100, -0.037, 0.037)]
)
def test_score_limits_are_tangos(lost, won, count, low, high):
    """The first as in Fagerland, Lydersen and Laake (2014), the second in closed form: z^2 / (n + z^2)."""
    found = [score_limit(lost, won, count, level) for level in (0.025, 0.975)]
    assert found == pytest.approx([low, high], abs=5e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60), st.floats(0.01, 0.99))
@example(0, 0, 10, 0.025)
@example(3, 3, 10, 0.5)
def test_score_limits_solve_the_score(lost, won, same, level):
    """With the share of won samples that makes what was seen most likely, found by a search."""
    count = lost + won + same
    if not (lost or won or same):
        return
    limit = score_limit(lost, won, count, level)
    assert limit == pytest.approx(-score_limit(won, lost, count, 1 - level), abs=1e-9)
    if min(1 - limit, 1 + limit) < 1e-6:
        return
    at = np.linspace(max(0, -limit) + 1e-9, (1 - limit) / 2 - 1e-9, 200_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        likely = [special.xlogy(n, p) for n, p in ((lost, at + limit), (won, at), (same, 1 - 2 * at - limit))]
    best = at[np.argmax(sum(likely))]
    spread = count * (2 * best + limit * (1 - limit))
    assert (lost - won - count * limit) / np.sqrt(spread) == pytest.approx(-scipy.norm.ppf(level), abs=0.02)


def test_few_samples_without_a_difference_prove_little():
    assert score_limit(0, 0, 10, 0.95) > 0.2
    rng = np.random.default_rng(0)
    passed = sum(
        score_limit((kinds == 0).sum(), (kinds == 1).sum(), 300, 0.95) < 0.02
        for kinds in rng.choice(3, (2000, 300), p=[0.04, 0.02, 0.94])
    )
    assert passed / 2000 < 0.06  # of models that are worse by the margin
