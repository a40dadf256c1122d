"""When a race is looked at, and how sure each look has to be."""

from collections.abc import Sequence

import msgspec
import numpy as np

from edgec.gate.compare import spread
from edgec.gate.limits import Limits
from edgec.gate.metrics import Measured
from edgec.gate.sequential import levels
from edgec.gate.statistics import quantile
from edgec.measure.race import Round

_LOOKS = 4
# How sure the plan wants to be that it will see a difference as large as that between allowed and margin.
_POWER = 0.95
# Degrees of freedom of errors that are as good as known.
_MANY = 1_000_000


class Plan(msgspec.Struct, frozen=True):
    """When a gate looks at a metric: at how many rounds, rising; whatever is undecided at the last look stays so."""

    looks: tuple[int, ...]

    def level(self, rounds: int, alpha: float, *, is_last: bool) -> float:
        """Return the one-sided level of a look, of all that `alpha` is for.

        Args:
            rounds: so far.
            alpha: one-sided, for all looks together.
            is_last: there will be no more rounds: what was kept for later looks is spent now.
        """
        looks = (*(look for look in self.looks if look < rounds), rounds) if is_last else self.looks
        return levels(tuple(look / looks[-1] for look in looks), alpha)[looks.index(rounds)]


def plan_looks(
    rounds: Sequence[Round], bounds: dict[Measured, Limits], alpha: float, most: int
) -> dict[Measured, Plan]:
    """Decide from how much the baseline differs from itself in the first rounds how many there will be for each metric.

    Where these are enough to see the difference between what is allowed and the margin, the first look is the last.

    Args:
        rounds: so far.
        bounds: what is gated.
        alpha: one-sided, of all metrics together.
        most: rounds that time allows.

    Source: Wittes and Brittain (1990), internal pilots: planning by the noise alone leaves the error rate as it is.
    """
    first = len(rounds)
    level = alpha / max(1, len(bounds))
    plans = {}
    for metric, bound in bounds.items():
        lengths = spread(rounds, metric) / float(np.log(bound.margin / bound.allowed)) ** 2
        # Of few rounds, errors are not well known: the fewer they are, the more it takes to be sure.
        now, later = (
            lengths * (quantile(freedom, level) + quantile(freedom, 1 - _POWER)) ** 2 for freedom in (first - 1, _MANY)
        )
        last = first if now <= first else max(first, min(most, int(2 * later) + 1))
        plans[metric] = Plan(tuple(sorted({round(look) for look in np.linspace(first, last, _LOOKS)})))
    return plans
