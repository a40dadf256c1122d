"""How fast this machine reads memory: the bound on decoding, which reads every weight for every token."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

# Larger than any last-level cache that one process is likely to have for itself.
_BUFFER_BYTES = 256 * 2**20
_REPEATS = 5


def read_bandwidth_gb_per_s(threads: int | None = None, buffer_bytes: int = _BUFFER_BYTES) -> float:
    """Return the best of a few runs of threads that read a buffer, in 10^9 bytes per second.

    Args:
        threads: how many; by default one for each CPU that this process may use.
        buffer_bytes: what is read in each run, all threads together.
    """
    count = threads or usable_cpus()
    # Ones, because pages of zeros may share one physical page.
    parts = [np.ones(buffer_bytes // 8 // count, np.int64) for _ in range(count)]
    size = sum(part.nbytes for part in parts)
    with ThreadPoolExecutor(count) as pool:
        best = min(_timed(pool, parts) for _ in range(_REPEATS))
    return size / best / 1e9


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _timed(pool: ThreadPoolExecutor, parts: list[NDArray[np.int64]]) -> float:
    start = time.perf_counter()
    list(pool.map(np.bitwise_or.reduce, parts))  # the cheapest reduction that reads everything
    return time.perf_counter() - start
