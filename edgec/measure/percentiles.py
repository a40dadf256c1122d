"""Percentiles, and how many times it takes to tell them."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 90, 99)

# LoadGen's: how sure a percentile has to be, and how many queries may lie beyond it.
_CONFIDENCE = 0.99


@cache
def sample_size(percentile: int) -> int:
    """Return how many queries it takes to tell a percentile: 11, 64 and 662 for the 50th, 90th and 99th.

    Source: MLPerf LoadGen, early stopping: with confidence 0.99, of so many queries more than one lies beyond it.
    """
    below = percentile / 100
    count = 2
    while below**count + count * (1 - below) * below ** (count - 1) > 1 - _CONFIDENCE:
        count += 1
    return count


def percentiles(times: NDArray[np.float64]) -> tuple[float, float | None, float | None]:
    """Return the median of times (any shape), and their 90th and 99th percentiles where there are enough for those."""
    p50, p90, p99 = np.percentile(times, PERCENTILES).tolist()
    return p50, p90 if times.size >= sample_size(90) else None, p99 if times.size >= sample_size(99) else None


def percentile_words(p50: float, p90: float | None, p99: float | None) -> str:
    """Return those that there are, such as "p50 1.23, p90 1.40 ms"."""
    known = zip(PERCENTILES, (p50, p90, p99), strict=True)
    return ", ".join(f"p{number} {value:.2f}" for number, value in known if value is not None) + " ms"
