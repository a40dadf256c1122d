"""The rounds of solving and measuring, with measurements that are made up."""

import math

import numpy as np
import pytest

from edgec.errors import PlanError
from edgec.evaluate.divergence import Divergence
from edgec.tune.budget import Budget
from edgec.tune.check import Measured
from edgec.tune.problem import Problem
from edgec.tune.run import ROUNDS, find
from edgec.tune.solve import total

UNITS, CANDIDATES = 12, 4
FIXED = 1000.0


def divergence(kl, ratio, error=0.0):
    names = Divergence.__struct_fields__
    found = {"mean_kl": kl, "perplexity_ratio": ratio, "perplexity_ratio_se": error}
    return Divergence(**dict.fromkeys(names, 0) | found)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    size = np.sort(rng.uniform(1e3, 1e5, (UNITS, CANDIDATES)), axis=1).round()
    kl = -np.sort(-rng.exponential(1e-3, (UNITS, CANDIDATES)), axis=1)
    return Problem(range(UNITS), range(CANDIDATES), kl, size, FIXED)


class Device:
    """What measuring finds: sizes with an overhead, and perplexity that grows by some power of the sum of KL."""

    def __init__(self, problem, overhead=0.0, growth=1.0, latency=None):
        self.problem, self.overhead, self.growth, self.latency = problem, overhead, growth, latency
        self.choices = []

    def __call__(self, choice):
        self.choices.append(tuple(choice))
        kl = total(self.problem.kl, choice)
        size = int(total(self.problem.size, choice) + FIXED + self.overhead)
        latency = None if self.latency is None else self.latency(choice)
        return Measured(divergence(kl, math.exp(kl * self.growth)), size, latency)


def test_what_no_choice_changes_is_learnt(problem):
    device = Device(problem, overhead=30_000)
    bound = 0.5 * problem.size.max(axis=1).sum()
    found = find(problem, Budget("size", bound), device)
    assert found.fixed == FIXED + 30_000
    assert not found.rounds[0].fits
    assert found.round.fits
    assert 0.9 * bound < found.round.measured <= bound
    assert found.round.measured == found.round.predicted


@pytest.mark.parametrize("growth", [0.3, 1.0, 3.0])
def test_the_growth_of_perplexity_is_learnt(problem, growth):
    middle = (problem.kl.min(axis=1).sum() + problem.kl.max(axis=1).sum()) / 2
    bound = math.expm1(growth * middle)
    device = Device(problem, growth=growth)
    found = find(problem, Budget("perplexity", bound), device)
    assert 0.5 * bound < found.round.measured <= bound
    assert found.round.size_bytes == min(r.size_bytes for r in found.rounds if r.fits)
    assert len(device.choices) <= ROUNDS
    if growth != 1.0:  # the first guess is that the logarithm is the sum itself
        assert len(device.choices) > 1


def test_nothing_is_impossible_before_the_cheapest_was_measured(problem):
    latency = problem.size / problem.size.max()
    timed = Problem(range(UNITS), range(CANDIDATES), problem.kl, problem.size, 0.0, latency=latency)
    cheapest = tuple(latency.argmin(axis=1))

    def slow_but_for_the_cheapest(choice):
        return total(latency, choice) * (0.9 if tuple(choice) == cheapest else 1.5) + 1.0

    device = Device(timed, latency=slow_but_for_the_cheapest)
    bound = total(latency, np.array(cheapest)) + 1.2
    found = find(timed, Budget("latency", bound), device)
    assert tuple(found.choice) == cheapest
    assert found.round.fits


def test_an_impossible_budget_says_what_is_nearest(problem):
    device = Device(problem)
    low = problem.size.min(axis=1).sum() + FIXED
    with pytest.raises(PlanError, match="none is smaller than"):
        find(problem, Budget("size", low - 1), device)
    assert device.choices == [tuple(problem.size.argmin(axis=1))]


def test_what_sums_call_dearer_is_measured_before_a_size_is_impossible(problem):
    def padded(choice):  # the cheapest by its sum is the dearest on disk
        size = int(total(problem.size, choice) + FIXED + 1e5 * (choice == 0).sum())
        return Measured(divergence(total(problem.kl, choice), 1.0), size)

    bound = problem.size[:, 1].sum() + FIXED
    found = find(problem, Budget("size", bound), padded)
    assert set(found.choice) == {1}
    assert found.round.measured == bound
    assert len(found.rounds) <= ROUNDS + CANDIDATES
    with pytest.raises(PlanError, match="none is smaller than"):
        find(problem, Budget("size", bound - 1), padded)


def test_the_upper_end_of_a_growth_is_what_must_be_inside(problem):
    def noisy(choice):
        kl = total(problem.kl, choice)
        return Measured(divergence(kl, math.exp(kl), 0.5 * kl), int(total(problem.size, choice)))

    middle = (problem.kl.min(axis=1).sum() + problem.kl.max(axis=1).sum()) / 2
    found = find(problem, Budget("perplexity", middle), noisy)
    upper = found.round.divergence.perplexity_ratio + 1.645 * found.round.divergence.perplexity_ratio_se - 1
    assert found.round.measured == pytest.approx(upper)
    assert 0.5 * middle < upper <= middle
