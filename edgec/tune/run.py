"""Find the mixture for a budget: solve, measure the whole, correct what the sums got wrong, and solve again."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.errors import PlanError
from edgec.evaluate.divergence import Divergence
from edgec.tune.budget import Budget, show
from edgec.tune.check import Measured
from edgec.tune.problem import Problem
from edgec.tune.solve import Solution, cheapest, minimise, total

Choice = NDArray[np.int64]
Check = Callable[[Choice], Measured]

ROUNDS = 5
# A round that uses this much of the budget is good enough.
_CLOSE = 0.98
# What the sum of KL divergences may be, over the logarithm of the growth of perplexity that is allowed.
_MOST_KL = 2.0
# Standard errors from a mean to the upper end of what it may be, with a probability of 95 %.
_ONE_SIDED = 1.645


_NEARER = {"size": "smaller than", "latency": "faster than", "perplexity": "nearer to the float model than"}


class NoMixtureError(PlanError):
    """No mixture is inside the budget.

    Args:
        budget: the bound.
        nearest: why, or what comes nearest.
    """

    def __init__(self, budget: Budget, nearest: str) -> None:
        super().__init__(
            f"no mixture of these candidates is inside {budget}: {nearest}",
            hint="allow more, or name other --candidates or another --slim",
        )
        self.nearest = nearest


class Round(msgspec.Struct, frozen=True):
    """A mixture that was solved for, and what became of it.

    Args:
        predicted_kl: the sum over units, and what the shape loses, nats.
        predicted: of the budget's quantity: bytes, ms, or the share by which perplexity grows.
        measured: the same, measured; of perplexity the upper end, with a probability of 95 %.
        divergence: of the whole mixture's graph from the dense float model, on text for checking.
        size_bytes: of the artifact.
        gap: how far the solver may be from the best choice, as a share.
        fits: whether `measured` is inside the budget.
    """

    predicted_kl: float
    predicted: float
    measured: float
    divergence: Divergence
    size_bytes: int | None
    latency_ms: float | None
    gap: float
    fits: bool


@dataclass(frozen=True)
class Found:
    """The choice, its round, all rounds, and what of the budget's quantity no choice changes."""

    choice: Choice
    round: Round
    rounds: tuple[Round, ...]
    fixed: float


def find(problem: Problem, budget: Budget, check: Check) -> Found:
    """Return the best choice inside a budget: the lowest KL, or for a bound on perplexity the smallest size.

    Args:
        problem: the tables.
        budget: the bound.
        check: measures a choice.

    Raises:
        NoMixtureError: no choice is inside the budget; it says the nearest one.
    """
    limits = _limits(problem, budget)
    found: dict[tuple[int, ...], Found] = {}

    def measure(solution: Solution) -> Round:
        measured = check(solution.choice)
        predicted, value = limits.predicted(solution.choice), limits.value(measured)
        done = _round(problem, budget, solution.choice, measured, predicted, value, solution.gap)
        limits.learn(solution.choice, measured, done)
        found[tuple(solution.choice)] = Found(solution.choice, done, (), limits.fixed)
        return done

    least = cheapest(limits.objective, limits.limited)
    while len(found) < ROUNDS:
        # Where none is inside by what is known so far, the cheapest may be when it is measured.
        solution = minimise(limits.objective, limits.limited, limits.limit) or least
        if tuple(solution.choice) in found:
            break
        done = measure(solution)
        if done.fits and done.measured >= _CLOSE * budget.limit:
            break
    for choice in (least.choice, *_alike(limits)):
        if any(each.round.fits for each in found.values()):
            break
        # Where the sums were right so far, what they call dearer is.
        wrong = any(each.round.measured != each.round.predicted for each in found.values())
        if tuple(choice) not in found and (wrong or choice is least.choice):
            measure(Solution(choice, 0.0))
    fitting = [each for each in found.values() if each.round.fits]
    if not fitting:
        nearest = show(budget.kind, min(each.round.measured for each in found.values()))
        raise NoMixtureError(budget, f"none is {_NEARER[budget.kind]} {nearest}")
    return replace(min(fitting, key=limits.rank), rounds=tuple(each.round for each in found.values()))


def _alike(limits: "_Cost | _Perplexity") -> list[Choice]:
    """Return the choices that store all units alike and may be inside the bound, the cheapest by their sum first."""
    units, candidates = limits.limited.shape
    choices = [np.full(units, column) for column in range(candidates)]
    sums = [total(np.where(np.isfinite(limits.objective), limits.limited, np.inf), choice) for choice in choices]
    order = sorted(range(candidates), key=lambda column: sums[column])
    return [choices[column] for column in order if np.isfinite(sums[column]) and sums[column] <= limits.most]


def as_round(problem: Problem, budget: Budget, choice: Choice, measured: Measured, before: Found) -> Round:
    """Return what became of a choice that was not solved for here."""
    limits = _limits(problem, budget)
    limits.fixed = before.fixed
    value = limits.value(measured)
    return _round(problem, budget, choice, measured, limits.predicted(choice), value, before.round.gap)


def _limits(problem: Problem, budget: Budget) -> "_Cost | _Perplexity":
    return _Perplexity(problem, budget.limit) if budget.kind == "perplexity" else _Cost(problem, budget.limit)


def _round(
    problem: Problem,
    budget: Budget,
    choice: Choice,
    measured: Measured,
    predicted: float,
    value: float | None,
    gap: float,
) -> Round:
    known = predicted if value is None else value
    kl = problem.predicted_kl(choice)
    divergence, size_bytes, latency_ms = measured.divergence, measured.size_bytes, measured.latency_ms
    return Round(kl, predicted, known, divergence, size_bytes, latency_ms, gap, known <= budget.limit)


class _Cost:
    """A bound on size or latency: the sum of what was chosen, and what no choice changes, which is learnt.

    No artifact is smaller than its matrices, so `most`, what a sum may be, is the bound; times are no such thing.
    """

    def __init__(self, problem: Problem, bound: float) -> None:
        self.is_size, self.bound = problem.latency is None, bound
        self.objective, self.limited = problem.kl, problem.costs
        self.fixed = problem.fixed_size if self.is_size else problem.fixed_latency
        self.most = bound if self.is_size else math.inf

    @property
    def limit(self) -> float:
        return self.bound - self.fixed

    def predicted(self, choice: Choice) -> float:
        return total(self.limited, choice) + self.fixed

    def value(self, measured: Measured) -> float | None:
        return measured.size_bytes if self.is_size else measured.latency_ms

    def learn(self, choice: Choice, measured: Measured, done: Round) -> None:
        del choice, measured
        self.fixed += done.measured - done.predicted

    def rank(self, found: Found) -> float:
        return found.round.divergence.mean_kl


class _Perplexity:
    """A bound on the growth of perplexity, whose logarithm is about the sum of KL divergences: the factor is learnt.

    What a slimmer shape lost before anything was rounded is taken off the bound first. Growth is measured on little
    text. What is compared with the bound is its upper end, 1.645 standard errors above the mean: one-sided, with a
    probability of 95 %.
    """

    def __init__(self, problem: Problem, bound: float) -> None:
        self.objective = np.where(np.isfinite(problem.kl), problem.size, np.inf)
        self.limited, self.fixed = problem.kl, problem.fixed_size
        self.lost = math.log1p(upper_growth(problem.floats)) if problem.floats else 0.0
        self.wanted = self.limit = math.log1p(bound) - self.lost
        self.most = _MOST_KL * self.wanted

    def predicted(self, choice: Choice) -> float:
        return math.expm1(self.lost + total(self.limited, choice) * self.wanted / self.limit)

    def value(self, measured: Measured) -> float:
        return upper_growth(measured.divergence)

    def learn(self, choice: Choice, measured: Measured, done: Round) -> None:
        if measured.size_bytes is not None:
            self.fixed = measured.size_bytes - total(self.objective, choice)
        # Perplexity may even fall, by noise or on a text that is not the model's own, where KL only grows.
        factor = total(self.limited, choice) / max(math.log1p(done.measured) - self.lost, 1e-9)
        self.limit = min(max(self.wanted * factor, self.limit / 4), self.most)

    def rank(self, found: Found) -> float:
        return total(self.objective, found.choice)


def upper_growth(found: Divergence) -> float:
    """Return the share by which perplexity grows at most, with a probability of 95 %."""
    return found.perplexity_ratio + _ONE_SIDED * found.perplexity_ratio_se - 1
