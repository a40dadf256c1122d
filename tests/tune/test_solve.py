"""The solver, beside trying everything."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgec.tune.pareto import front, uniform
from edgec.tune.solve import minimise, total

VALUES = st.one_of(st.floats(0, 1), st.floats(0, 1e-5), st.integers(0, 3).map(float))

# No budget is a millionth of what it is for.
SHARES = st.floats(0, 1.2).map(lambda share: round(share, 6))


@st.composite
def instances(draw):
    units, candidates = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    objective, limited = (
        np.array(draw(st.lists(VALUES, min_size=units * candidates, max_size=units * candidates)))
        .reshape(units, candidates)
        .astype(float)
        for _ in range(2)
    )
    for row, column in draw(st.lists(st.tuples(st.integers(0, units - 1), st.integers(0, candidates - 1)), max_size=2)):
        objective[row, column] = np.inf
    return objective, limited * draw(st.sampled_from([1.0, 1e8])), draw(SHARES)


def brute(objective, limited, limit):
    best = np.inf
    for choice in product(range(objective.shape[1]), repeat=len(objective)):
        if total(limited, np.array(choice)) <= limit:
            best = min(best, total(objective, np.array(choice)))
    return best


@settings(max_examples=150, deadline=None)
@given(instances())
@example((np.eye(2), np.array([[0.0, 2e-309], [0.0, 0.0]]), 0.0))  # a price that float64 does not hold
def test_the_choice_is_the_best_of_all(instance):
    objective, limited, share = instance
    limit = share * limited.max(axis=1).sum()
    expected, found = brute(objective, limited, limit), minimise(objective, limited, limit)
    if not np.isfinite(expected):
        assert found is None
        return
    assert total(limited, found.choice) <= limit
    # A choice whose cost is the limit but for the solver's tolerance may be given up.
    nearly = brute(objective, limited, limit * (1 - 1e-5))
    value = total(objective, found.choice)
    assert value <= nearly * (1 + 1e-9)
    assert value * (1 - found.gap) <= expected * (1 + 1e-9)


def model_like(seed):
    """Return KL and sizes such as 30 layers have, for channels, groups of 32 and 128, int8 and fp16."""
    rng = np.random.default_rng(seed)
    numbers = np.array([864] + [54, 18, 108, 54] * 30)
    size = np.round(np.outer(numbers, [4.03, 4.5, 4.125, 8.03, 16.0]) * rng.uniform(0.99, 1.01, (121, 1)))
    kl = np.outer(rng.lognormal(0, 1, 121), [2e-2, 1e-3, 1.6e-3, 2e-6, 0]) * rng.uniform(0.8, 1.2, (121, 5))
    kl[0] = [6, 0.08, 0.12, 4e-5, 0]
    return kl, size


def by_dynamic_programming(kl, size, limit):
    best = np.zeros(int(limit) + 1)
    for losses, sizes in zip(kl, size.astype(int), strict=True):
        longer = np.full_like(best, np.inf)
        for loss, taken in zip(losses, sizes, strict=True):
            longer[taken:] = np.minimum(longer[taken:], best[: len(best) - taken] + loss)
        best = longer
    return best[-1]


@pytest.mark.parametrize("share", [0.3, 0.45, 0.85])
def test_one_very_bad_candidate_does_not_hide_small_gains(share):
    kl, size = model_like(0)
    limit = np.floor(share * size[:, 4].sum())
    found = minimise(kl, size, limit)
    assert total(size, found.choice) <= limit
    assert total(kl, found.choice) == pytest.approx(by_dynamic_programming(kl, size, limit), rel=1e-9)
    assert found.gap <= 1e-6


def test_a_choice_is_as_far_from_the_best_as_it_says_where_time_runs_out(monkeypatch):
    monkeypatch.setattr("edgec.tune.solve._SECONDS", 0.0)
    kl, size = model_like(0)
    limit = np.floor(0.3 * size[:, 4].sum())
    found, best = minimise(kl, size, limit), by_dynamic_programming(kl, size, limit)
    assert total(size, found.choice) <= limit
    value = total(kl, found.choice)
    assert 0 < found.gap < 0.5
    assert best <= value <= best / (1 - found.gap)


def test_hundreds_of_units_are_solved_to_the_end_in_silence(capfd):
    rng = np.random.default_rng(0)
    limited = np.sort(rng.uniform(1, 100, (300, 5)), axis=1)
    objective = -np.sort(-rng.exponential(1e-3, (300, 5)), axis=1)
    found = minimise(objective, limited, limited.mean(axis=1).sum())
    assert found.gap < 1e-6
    assert total(limited, found.choice) <= limited.mean(axis=1).sum()
    assert capfd.readouterr().out == ""


def test_every_mixture_of_the_front_is_better_and_dearer_than_the_one_before():
    rng = np.random.default_rng(1)
    cost, kl = np.sort(rng.uniform(1, 9, (12, 4)), axis=1), -np.sort(-rng.exponential(1, (12, 4)), axis=1)
    points = front(kl, cost, 12)
    assert points[0].cost == pytest.approx(cost.min(axis=1).sum())
    assert points[-1].kl == pytest.approx(kl.min(axis=1).sum())
    for before, after in pairwise(points):
        assert after.kl < before.kl
        assert after.cost > before.cost
    for point in uniform(kl, cost, list("abcd")):
        assert minimise(kl, cost, point.cost) is not None
        assert total(kl, minimise(kl, cost, point.cost).choice) <= point.kl
