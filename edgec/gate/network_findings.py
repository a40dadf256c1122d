"""What the samples say about a network beside its baseline."""

import math
from functools import partial

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edgec.evaluate.counted import count_losses
from edgec.evaluate.fidelity import finite
from edgec.evaluate.metrics import Counting, Metric, Stats
from edgec.evaluate.paired import RESAMPLES, draws, score_limit
from edgec.evaluate.wanted import Wanted
from edgec.gate.bounds import Bounds, Limit, wider
from edgec.gate.result import Finding

# Fewer samples decide nothing: a bootstrap cannot know of what is not among them, and Tango's interval is for many.
_FEWEST = 30
# Nor where fewer of them differ.
_DIFFERENT = 10
# Draws beyond the end of an interval that tell where it is.
_TAIL = 20


def judge_samples(wanted: Wanted, before: Stats, after: Stats, bounds: Bounds, *, where: str, seed: int) -> Finding:
    """Return the finding of one metric.

    The interval of a share of samples is Tango's. That of other metrics is a paired bootstrap's, which knows of no
    other differences than those it draws. So where few samples differ, metrics that count what is right take Tango's
    too, with each sample as what it is worth, and of both intervals the wider ends; others decide nothing. Where no
    sample differs in measured numbers, the models compute the same.

    Args:
        wanted: the metric.
        before: what it needs to know of each sample, of the baseline, (n, k).
        after: the same of the candidate.
        bounds: what they may lose.
        where: the name of the samples.
        seed: of the bootstrap.
    """
    better = wanted.metric.HIGHER_IS_BETTER
    values = [finite(wanted.total(each)) for each in (before, after)]
    found = Finding(
        group="quality", metric=wanted.name, where=where, higher_is_better=better, scale="difference",
        baseline=values[0], candidate=values[1],
    )  # fmt: skip
    if values[0] is None or values[1] is None:
        return bounds.undecided(replace(found, note="the difference is not defined on these samples"))
    wrong = wanted.metric.lost(before) if isinstance(wanted.metric, Counting) else None
    if wrong is not None and (empty := _empty(before) & _empty(after)).any():
        before, after, wrong = before[~empty], after[~empty], wrong[~empty]
    differ = int((before != after).any(axis=1).sum())
    is_share = wrong is not None and _is_flag(before) and _is_flag(after)
    if is_share:
        limit: Limit | None = _share(wanted.metric, before, after)
    else:
        resamples = max(RESAMPLES, math.ceil(_TAIL / bounds.level))
        drawn = draws(before, after, wanted.metric.total, resamples=resamples, seed=seed)
        limit = None if drawn is None else _limit(wanted.metric, before, after, wrong, drawn)
    if limit is None:
        return bounds.undecided(replace(found, note="the difference is not defined on these samples"))
    loss = values[0] - values[1] if better else values[1] - values[0]
    found = bounds.decide(replace(found, estimate=loss), limit)
    note = None
    if len(after) < _FEWEST:
        note = f"{len(after)} samples are too few for a verdict"
    elif wrong is None and 0 < differ < _DIFFERENT:
        note = f"{differ} of {len(after)} samples differ: too few for a verdict"
    return found if note is None else replace(found, verdict="inconclusive", note=note)


def _empty(stats: Stats) -> NDArray[np.bool_]:
    """Return which samples have no predictions, and count for nothing, (n,)."""
    return np.asarray((stats == 0).all(axis=1) & (stats.shape[1] == 2))


def _is_flag(stats: Stats) -> bool:
    """Say whether each sample is one prediction, right or wrong."""
    is_single = stats.shape[1] == 1 or (stats.shape[1] == 2 and bool((stats[:, 1] == 1).all()))
    return is_single and bool(np.isin(stats[:, 0], (0, 1)).all())


def _share(metric: Metric, before: Stats, after: Stats) -> Limit:
    rises = after[:, 0] - before[:, 0]
    losses = -rises if metric.HIGHER_IS_BETTER else rises
    return partial(score_limit, int((losses > 0).sum()), int((losses < 0).sum()), len(losses))


def _limit(metric: Metric, before: Stats, after: Stats, wrong: Stats | None, drawn: NDArray[np.float64]) -> Limit:
    sign = -1 if metric.HIGHER_IS_BETTER else 1

    def bootstrap(level: float) -> float:
        return float(np.quantile(sign * drawn, level))

    if wrong is None:
        return bootstrap
    counted = count_losses(before, after, wrong, lambda stats, weights: sign * metric.total(stats, weights))
    if counted is None or counted.differ >= _DIFFERENT:
        return bootstrap
    return wider(bootstrap, counted.limit)
