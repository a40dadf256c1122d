"""How sure a difference between two models on the same samples is."""

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


def interval(
    reference: Stats, test: Stats, total: Total, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return where total(test) - total(reference) lies with 95 % confidence: a paired bootstrap over samples.

    Draws come from the raw numbers of PCG64, which numpy promises not to change, so they are the same everywhere.
    Memory is bounded by 40 MB and what `total` takes for a million weights.

    Args:
        reference: (n, k), what `total` needs to know of each sample.
        test: the same of the other model.
        total: (n, k) and weights (r, n) -> r values.
        resamples: how often to draw n samples.
        seed: of the draws.

    Returns:
        None for a single sample, and where the difference is not defined in more than 5 % of draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentile intervals.
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
    if len(defined) < _DEFINED * resamples:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


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


def _draw(generator: np.random.PCG64, rows: int, count: int) -> NDArray[np.float64]:
    """Return (rows, count): how often each of `count` samples is among `count` draws."""
    raw = np.asarray(generator.random_raw(rows * count)).reshape(rows, count)
    # The upper 32 bits times the count, over 2**32: a sample, each as likely as the others but for 2**-32.
    index = ((raw >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)
    index += (np.arange(rows, dtype=np.uint64) * np.uint64(count))[:, None]
    drawn = np.bincount(index.ravel().astype(np.int64), minlength=rows * count)
    return drawn.reshape(rows, count).astype(np.float64)
