"""The solver, beside trying everything."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
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
    scale = np.where(np.isfinite(objective), objective, 0).max()
    assert total(objective, found.choice) <= nearly + 1e-6 * scale
    assert found.gap <= 1e-6


def test_a_thousand_units_are_solved_to_the_end():
    rng = np.random.default_rng(0)
    limited = np.sort(rng.uniform(1, 100, (300, 4)), axis=1)
    objective = -np.sort(-rng.exponential(1e-3, (300, 4)), axis=1)
    found = minimise(objective, limited, limited.mean(axis=1).sum())
    assert found.gap < 1e-4
    assert total(limited, found.choice) <= limited.mean(axis=1).sum()


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
