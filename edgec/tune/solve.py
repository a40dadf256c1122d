"""One candidate for each unit: a multiple-choice knapsack, solved exactly.

The relaxed problem gives a bound, a choice, and a price of the limited quantity. With that price most candidates cannot
be in any better choice; HiGHS solves for the few that can, with numbers of the size of what can still be gained, as the
tolerances of a solver are absolute.

Source: Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter 11, for the bound, the choice and what it leaves;
Huangfu and Hall 2018, Parallelizing the dual revised simplex method (arXiv:1503.01889), which `scipy.optimize.milp`
calls.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.errors import require

Table = NDArray[np.float64]
"""(units, candidates); infinite where a unit must not take a candidate."""
Choice = NDArray[np.int64]

_SECONDS = 60.0
# HiGHS takes a limit to be kept when it is passed by this share.
_TOLERANCE = 1e-6
# Of sums in float64, as a share.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Solution:
    """The candidate of each unit, (units,), and how far its value may be from the best, as a share of it."""

    choice: Choice
    gap: float


def total(table: Table, choice: Choice) -> float:
    """Return the sum of what was chosen."""
    return float(table[np.arange(len(choice)), choice].sum())


def minimise(objective: Table, limited: Table, limit: float) -> Solution | None:
    """Return the choice with the smallest sum of `objective` whose sum of `limited` is at most `limit`, or None.

    Both tables are not negative.

    Raises:
        MissingRuntimeError: scipy is not installed.
    """
    require("scipy", "tune")
    allowed = np.isfinite(objective) & np.isfinite(limited)
    objective, limited = np.where(allowed, objective, np.inf), np.where(allowed, limited, np.inf)
    nearest = cheapest(objective, limited).choice
    if not total(limited, nearest) <= limit or not np.isfinite(total(objective, nearest)):
        return None
    bound, price, choice = _relaxed(objective, limited, limit)
    best = _improved(objective, limited, limit, nearest if choice is None else choice)
    room = total(objective, best) - bound
    if room > _ROUNDING * total(objective, best):
        priced = _priced(objective, limited, price)
        core = priced - priced.min(axis=1, keepdims=True) <= room
        core[np.arange(len(best)), best] = True
        found, proven = _milp(np.where(core, objective, np.inf), limited, limit, room)
        best = min((best, *found), key=lambda choice: total(objective, choice))
        bound = max(bound, proven)
    value = total(objective, best)
    return Solution(best, max(0.0, float(1 - bound / value)) if value > 0 else 0.0)


def cheapest(objective: Table, limited: Table) -> Solution:
    """Return the choice with the smallest sum of `limited`, whatever its `objective`, if that is finite."""
    return Solution(np.where(np.isfinite(objective), limited, np.inf).argmin(axis=1), 0.0)


def _priced(objective: Table, limited: Table, price: float) -> Table:
    """Return the objective with what is limited at a price; infinite where not allowed."""
    priced: Table = objective + price * np.where(np.isfinite(objective), limited, 0.0)
    return priced


def _relaxed(objective: Table, limited: Table, limit: float) -> tuple[float, float, Choice | None]:
    """Return the best Lagrangian bound, its price, and a choice at this or the next price that keeps the limit."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        less = limited[:, :, None] - limited[:, None, :]
        prices = (objective[:, None, :] - objective[:, :, None]) / less
    prices = np.unique(np.concatenate([[0.0], prices[np.isfinite(prices) & (prices > 0) & (less > 0)]]))

    def at(price: float) -> tuple[float, Choice]:
        priced = _priced(objective, limited, price)
        ties = priced <= priced.min(axis=1, keepdims=True) * (1 + _ROUNDING)
        return float(priced.min(axis=1).sum()) - price * limit, np.where(ties, limited, np.inf).argmin(axis=1)

    # The sum of `limited` falls with the price: the bound is largest where it falls below the limit.
    low, high = 0, len(prices)
    while low < high:
        middle = (low + high) // 2
        if total(limited, at(prices[middle])[1]) <= limit:
            high = middle
        else:
            low = middle + 1
    near = [at(price) for price in prices[max(low - 1, 0) : low + 1]]
    best = max(range(len(near)), key=lambda index: near[index][0])
    price = float(prices[max(low - 1, 0) + best])
    return near[best][0], price, at(prices[low])[1] if low < len(prices) else None


def _improved(objective: Table, limited: Table, limit: float, choice: Choice) -> Choice:
    """Return a choice with what is left of the limit spent, the best gain for its cost first."""
    choice, units = choice.copy(), np.arange(len(choice))
    while True:
        gain = objective[units, choice][:, None] - objective
        cost = limited - limited[units, choice][:, None]
        fits = (gain > 0) & (cost <= limit * (1 - _ROUNDING) - total(limited, choice))
        if not fits.any():
            return choice
        rate = np.zeros_like(gain)
        np.divide(gain, np.maximum(cost / (limit or 1.0), _ROUNDING), out=rate, where=fits)
        unit, candidate = np.unravel_index(rate.argmax(), rate.shape)
        choice[unit] = candidate


def _milp(objective: Table, limited: Table, limit: float, unit: float) -> tuple[list[Choice], float]:
    """Return choices that keep the limit, if HiGHS finds any, and the bound that it proves.

    Args:
        objective: infinite for candidates that need not be looked at.
        limited: what counts against the limit.
        limit: of its sum.
        unit: what the objective is measured in, so that differences that matter are about 1.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    units, candidates = objective.shape
    allowed = np.isfinite(objective)
    least = objective.min(axis=1, keepdims=True)
    costs = (np.where(allowed, objective, least) - least).reshape(-1) / unit
    weights = np.where(allowed, limited, 0.0).reshape(1, -1)
    one_each = np.kron(np.eye(units), np.ones((1, candidates)))
    scale = limit if limit > 0 else 1.0
    bound = -np.inf
    # HiGHS may pass the limit by its tolerance: then it is asked again, with a limit that is stricter by that.
    for strictness in (0.0, 4 * _TOLERANCE):
        with _silent():
            result = milp(
                costs,
                integrality=np.ones(costs.size),
                bounds=Bounds(0, allowed.reshape(-1).astype(float)),
                constraints=[
                    LinearConstraint(one_each, 1, 1),
                    LinearConstraint(weights / scale, -np.inf, limit / scale * (1 - strictness)),
                ],
                options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
            )
        if strictness == 0 and result.mip_dual_bound is not None:
            bound = float(result.mip_dual_bound) * unit + float(least.sum())
        if result.x is not None:
            choice = result.x.reshape(units, candidates).argmax(axis=1)
            if total(limited, choice) <= limit:
                return [choice], bound
    return [], bound


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what a library prints: HiGHS does now and then, whatever its options say, where results are printed."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
