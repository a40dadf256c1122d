"""Time two things in turn, so that what else the machine does hits both."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

_RESAMPLES = 2000


def paired_ms(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    pairs: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Return (pairs, 2) times in ms of `a` and `b`, called in turn; which one is first changes from pair to pair.

    Args:
        a: something to time.
        b: another.
        pairs: how often each.
        warmup: calls that do not count.
        clock: in seconds; `time.process_time` for what runs in one thread, which other programs change less.
    """
    for _ in range(warmup):
        a()
        b()
    times = np.empty((pairs, 2))
    for pair in range(pairs):
        order = ((0, a), (1, b)) if pair % 2 == 0 else ((1, b), (0, a))
        for column, call in order:
            start = clock()
            call()
            times[pair, column] = 1e3 * (clock() - start)
    return times


def ratio_interval(a: Times, b: Times, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the median of a / b pair by pair, and a 95 % bootstrap interval of it."""
    ratios = a / b
    draws = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)
