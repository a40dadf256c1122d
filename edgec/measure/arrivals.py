"""Queries that arrive faster than a model answers them."""

from collections.abc import Sequence

from edgec.measure.race import Round
from edgec.measure.workload import Workload

# Of the queries that arrive, the share that has to be answered as fast as they come.
_KEPT_UP = 0.8


def overloaded(rounds: Sequence[Round], workloads: Sequence[Workload], names: Sequence[str]) -> tuple[str, ...]:
    """Return a remark on each bundle that queries come too fast for."""
    remarks = []
    for number, workload in enumerate(workloads):
        for variant, name in enumerate(names if workload.rate_per_s else ()):
            slices = [turn for each in rounds for turn in each[variant].slices[number]]
            # The first token, or the answer: there is one in each query.
            queries = sum(min(map(len, turn.samples.values())) for turn in slices)
            seconds = sum(turn.busy_s for turn in slices)
            rate = queries / seconds
            # So many arrive, give or take the root of their number.
            if queries + 2 * queries**0.5 < _KEPT_UP * (workload.rate_per_s or 0) * seconds:
                remarks.append(
                    f"{name} answers {rate:.3g} queries in a second, and {workload.rate_per_s:g} arrive: "
                    "they wait in a queue that grows, and times say how long it was measured"
                )
    return tuple(remarks)
