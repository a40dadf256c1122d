"""Rounds as a race would give them, from a machine whose noise is known."""

from collections.abc import Iterator

import numpy as np

from edgec.measure.query import Slice
from edgec.measure.race import Process, Round


def rounds(
    rng: np.random.Generator, slower: float = 0.0, *, process: float = 0.004, turn: float = 0.03, drift: float = 0.1
) -> Iterator[Round]:
    """Yield rounds of baseline, baseline and candidate.

    Args:
        rng: of the noise.
        slower: the candidate takes so much longer: 0.05 for 5 %.
        process: standard deviation of the logarithm, from process to process.
        turn: from turn to turn; one turn in ten takes up to half as long again.
        drift: from turn to turn, but the same for all three processes.
    """
    factors = (1.0, 1.0, 1.0 + slower)
    while True:
        shared = np.cumsum(rng.normal(0, drift / 3, 8))
        yield tuple(_process(rng, factor * np.exp(rng.normal(0, process)), shared, turn) for factor in factors)


def _process(rng: np.random.Generator, factor: float, shared: np.ndarray, turn: float) -> Process:
    noise = rng.normal(0, turn, 8) + np.where(rng.random(8) < 0.1, rng.uniform(0, 0.5, 8), 0)
    times = factor * np.exp(shared + noise)
    slices = tuple(Slice({"latency_ms": [time, time, time]}, 3 * time / 1e3, 3) for time in times)
    load_ms = tuple((20 * np.exp(rng.normal(0, 0.1, 5))).tolist())
    return Process(load_ms, int(80e6 * np.exp(rng.normal(0, 0.001))), (slices,), 1_000_000, (1,))
