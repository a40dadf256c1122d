"""How sure a difference between two models on the same samples is."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Stats = NDArray[np.float64]
Total = Callable[[Stats, NDArray[np.float64]], NDArray[np.float64]]

RESAMPLES = 2000

# Numbers in one block of draws: 8 MiB.
_AT_ONCE = 2**20
# An interval of fewer values than that would say something about other samples than those that were drawn.
_DEFINED = 0.95
# Of a share.
_EXACT = 1e-12


def interval(
    reference: Stats, test: Stats, total: Total, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return where total(test) - total(reference) lies: a paired bootstrap over samples.

    Args:
        reference: (n, k), what `total` needs to know of each sample.
        test: the same of the other model.
        total: (n, k) and weights (r, n) -> r values.
        resamples: how often to draw n samples.
        seed: of the draws.
        confidence: of the interval.

    Returns:
        None for a single sample, and where the difference is not defined in more than 5 % of draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentile intervals.
    """
    drawn = draws(reference, test, total, resamples=resamples, seed=seed)
    if drawn is None:
        return None
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def draws(
    reference: Stats, test: Stats, total: Total, *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64] | None:
    """Return total(test) - total(reference) over samples drawn anew, where it is defined; as for `interval`.

    Draws come from the raw numbers of PCG64, which numpy promises not to change, so they are the same everywhere.
    Memory is bounded by 40 MB and what `total` takes for a million weights.
    """
    count = len(reference)
    if count < 2:
        return None
    generator = np.random.PCG64(seed)
    at_once = max(1, _AT_ONCE // count)
    found = []
    for first in range(0, resamples, at_once):
        weights = _draw(generator, min(at_once, resamples - first), count)
        with np.errstate(invalid="ignore"):  # infinite - infinite
            found.append(total(test, weights) - total(reference, weights))
    differences = np.concatenate(found)
    defined = differences[np.isfinite(differences)]
    return defined if len(defined) >= _DEFINED * resamples else None


def mcnemar(reference: NDArray[np.bool_], test: NDArray[np.bool_]) -> float:
    """Return the chance that two equally good models differ as much in which samples they get right, (n,) each.

    Exact and two-sided; 1 where they are right about the same ones.

    Source: McNemar (1947), with the binomial distribution in place of its approximation.
    """
    lost, won = int((reference & ~test).sum()), int((~reference & test).sum())
    differ = lost + won
    ways, tail = 1, 1
    for number in range(min(lost, won)):
        ways = ways * (differ - number) // (number + 1)
        tail += ways
    # Integers: 2**differ is no float from 1024 on.
    return min(1.0, float(2 * tail / 2**differ))


def score_limit(lost: float, won: float, count: int, level: float) -> float:
    """Return what the true loss in the share of right predictions is below with a chance of `level`, 0 to 1.

    Unlike a bootstrap it knows that few samples without a difference prove little.

    Args:
        lost: samples that the reference gets right and the other model wrong; parts of one, too.
        won: the other way round.
        count: all samples.
        level: such as 0.95 for the upper end, 0.05 for the lower end; needs scipy.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17, 1998: the score of the loss, with the other parameter at its most likely value.
    """
    from scipy.special import ndtri

    wanted = -float(ndtri(level))
    low, high = -1.0, 1.0
    while high - low > _EXACT:  # the score falls as the loss grows
        middle = (low + high) / 2
        low, high = (middle, high) if _score(lost, won, count, middle) > wanted else (low, middle)
    return (low + high) / 2


def _score(lost: float, won: float, count: int, loss: float) -> float:
    half = lost + won - (2 * count - lost + won) * loss
    won_share = (math.sqrt(half**2 + 8 * count * won * loss * (1 - loss)) + half) / (4 * count)
    spread = count * (2 * won_share + loss * (1 - loss))
    away = lost - won - count * loss
    if spread > 0:
        return away / math.sqrt(spread)
    return math.copysign(math.inf, away) if away else 0.0


def _draw(generator: np.random.PCG64, rows: int, count: int) -> NDArray[np.float64]:
    """Return (rows, count): how often each of `count` samples is among `count` draws."""
    raw = np.asarray(generator.random_raw(rows * count)).reshape(rows, count)
    # The upper 32 bits times the count, over 2**32: a sample, each as likely as the others but for 2**-32.
    index = ((raw >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
    index += (np.arange(rows, dtype=np.uint64) * np.uint64(count))[:, None]
    drawn = np.bincount(index.ravel().astype(np.int64), minlength=rows * count)
    return drawn.reshape(rows, count).astype(np.float64)
