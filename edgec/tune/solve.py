"""One candidate for each unit: a multiple-choice knapsack, solved exactly.

Source: Kellerer, Pferschy, Pisinger 2004, Knapsack Problems, chapter 11; solved by HiGHS, Huangfu and Hall 2018,
Parallelizing the dual revised simplex method (arXiv:1503.01889), as `scipy.optimize.milp` calls it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.errors import require

Table = NDArray[np.float64]
"""(units, candidates); infinite where a unit must not take a candidate."""

_SECONDS = 60.0
# HiGHS takes a limit to be kept when it is passed by this share.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Solution:
    """The candidate of each unit, (units,), and how far its value may be from the best, as a share of it."""

    choice: NDArray[np.int64]
    gap: float


def total(table: Table, choice: NDArray[np.int64]) -> float:
    """Return the sum of what was chosen."""
    return float(table[np.arange(len(choice)), choice].sum())


def minimise(objective: Table, limited: Table, limit: float) -> Solution | None:
    """Return the choice with the smallest sum of `objective` whose sum of `limited` is at most `limit`, or None.

    Both tables are not negative.

    Raises:
        MissingRuntimeError: scipy is not installed.
    """
    require("scipy", "tune")
    nearest = cheapest(objective, limited)
    if not total(limited, nearest.choice) <= limit or not np.isfinite(total(objective, nearest.choice)):
        return None
    for strictness in (0.0, 4 * _TOLERANCE):
        found = _milp(objective, limited, limit * (1 - strictness))
        if found is not None and total(limited, found.choice) <= limit:
            return found
    return nearest  # within the tolerance of the cheapest choice there is no other


def cheapest(objective: Table, limited: Table) -> Solution:
    """Return the choice with the smallest sum of `limited`, whatever its `objective`, if that is finite."""
    return Solution(np.where(np.isfinite(objective), limited, np.inf).argmin(axis=1), 0.0)


def _milp(objective: Table, limited: Table, limit: float) -> Solution | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    units, candidates = objective.shape
    allowed = np.isfinite(objective) & np.isfinite(limited)

    def flat(table: Table) -> Table:
        """Return the table in one row with numbers near 1, which is what solvers' tolerances are for."""
        values: Table = np.where(allowed, table, 0.0).reshape(1, -1)
        return values

    costs = flat(objective)
    one_each = np.kron(np.eye(units), np.ones((1, candidates)))
    scale = limit if limit > 0 else 1.0
    result = milp(
        costs[0] / max(costs.max(), np.finfo(float).tiny),
        integrality=np.ones(costs.size),
        bounds=Bounds(0, allowed.reshape(-1).astype(float)),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(flat(limited) / scale, -np.inf, limit / scale),
        ],
        # With presolve HiGHS 1.12 prints to stdout now and then, where results are.
        options={"mip_rel_gap": 1e-9, "time_limit": _SECONDS, "presolve": False},
    )
    if result.x is None:
        return None
    chosen = result.x.reshape(units, candidates).argmax(axis=1)
    return Solution(chosen, float(result.mip_gap or 0.0))
