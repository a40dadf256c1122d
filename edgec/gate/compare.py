"""What rounds of a race say of a metric: the candidate beside the baseline, and the baseline beside itself."""

from collections.abc import Sequence

import numpy as np

from edgec.evaluate.fidelity import finite
from edgec.gate.metrics import Measured, measured, values
from edgec.gate.result import Finding
from edgec.gate.statistics import Estimate, Values, hierarchical, noise
from edgec.measure.race import Round
from edgec.measure.workload import Workload

BASELINE, SENTINEL, CANDIDATE = range(3)
"""The processes of a round. The sentinel is the baseline once more."""

_BESIDE = {CANDIDATE: (BASELINE, SENTINEL), SENTINEL: (BASELINE,)}
_CONTRASTS = {CANDIDATE: np.array([-0.5, -0.5, 1.0]), SENTINEL: np.array([-1.0, 1.0, 0.0])}


def logarithms(rounds: Sequence[Round], metric: Measured) -> list[Values]:
    """Return of each round the logarithms of a metric (turns, processes); more is worse."""
    sign = -1 if metric.higher_is_better else 1
    return [sign * np.log(np.stack([values(process, metric) for process in each], axis=1)) for each in rounds]


def spread(rounds: Sequence[Round], metric: Measured) -> float:
    """Return how much what a round says of the candidate would differ from round to round, were it the baseline.

    A variance, from what the second baseline says beside the first: that is independent of what the candidate says
    beside both, and of how much that scatters. A plan that stopped where the candidate happens to scatter little would
    stop where its interval is too short.
    """
    return noise(logarithms(rounds, metric), _CONTRASTS[CANDIDATE], _CONTRASTS[SENTINEL])


def common(rounds: Sequence[Round]) -> tuple[Measured, ...]:
    """Return the metrics that every process of every round tells of, and never as 0, which no ratio can be of."""
    first, *others = [process for each in rounds for process in each]
    everywhere = set(measured(first)).intersection(*map(measured, others))
    return tuple(
        metric
        for metric in measured(first)
        if metric in everywhere and all((values(process, metric) > 0).all() for process in (first, *others))
    )


def find(
    rounds: Sequence[Round], metric: Measured, test: int, workloads: Sequence[Workload], alpha: float, seed: int
) -> tuple[Estimate, Finding]:
    """Return what rounds say of a metric, as an estimate and as a finding without a bound.

    Args:
        rounds: at least two.
        metric: what is compared.
        test: CANDIDATE, which is compared with the mean of both baselines, or SENTINEL, with the first.
        workloads: that were run.
        alpha: one-sided, of the interval that is shown.
        seed: of the bootstrap.
    """
    estimate = hierarchical(logarithms(rounds, metric), _CONTRASTS[test], level=alpha, seed=seed)
    baseline = typical(rounds, metric, _BESIDE[test])
    return estimate, Finding(
        group="performance",
        metric=metric.name,
        where="" if metric.workload is None else workloads[metric.workload].label(workloads),
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        baseline=baseline,
        candidate=beside(baseline, metric, estimate.centre),
        estimate=exp(estimate.centre),
        low=exp(estimate.low(alpha)),
        high=exp(estimate.high(alpha)),
    )


def beside(baseline: float | None, metric: Measured, centre: float) -> float | None:
    """Return the value that is so many times as bad (a logarithm) as the baseline's.

    Not what is typical of the candidate's own turns: the ratio leaves out what all processes of a turn have in common,
    and the two would not fit each other.
    """
    if baseline is None:
        return None
    found = exp(np.log(baseline) + (-centre if metric.higher_is_better else centre))
    return _whole(found, metric)


def exp(logarithm: float) -> float | None:
    """Return the ratio of a logarithm; None where JSON could not say it."""
    with np.errstate(over="ignore"):
        return finite(float(np.exp(logarithm)))


def typical(rounds: Sequence[Round], metric: Measured, variants: Sequence[int]) -> float | None:
    """Return the geometric mean of the medians over turns that each round gives for each of some variants."""
    logs = [np.median(np.log(values(each[variant], metric))) for each in rounds for variant in variants]
    return _whole(exp(float(np.mean(logs))), metric)


def _whole(value: float | None, metric: Measured) -> float | None:
    return value if value is None or metric.unit != "bytes" else float(round(value))
