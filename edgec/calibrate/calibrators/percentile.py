"""Clip one number of ten thousand: the largest sizes of a symmetric range, else equally many at both ends."""

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.calibrators import Range
from edgec.calibrate.histogram import Histogram

_KEPT = 0.9999


def find_range(histogram: Histogram, levels: int, symmetric: bool) -> Range:  # noqa: ARG001
    """Return edges of bins, or the lowest and the highest number; what lies on one side of 0 is clipped there alone."""
    total = int(histogram.sides.sum())
    if symmetric:
        clip = min(histogram.largest, _size(histogram.counts, _KEPT * total) * histogram.width)
        return -clip, clip
    ends = bool(histogram.lowest) + bool(histogram.highest)
    below, above = (_size(side, side.sum() - (1 - _KEPT) * total / max(ends, 1)) for side in histogram.sides)
    return max(histogram.lowest, -below * histogram.width), min(histogram.highest, above * histogram.width)


def _size(counts: NDArray[np.int64], kept: float) -> int:
    """Return how many bins hold at least `kept` numbers."""
    return int(np.searchsorted(np.cumsum(counts), kept)) + 1 if kept > 0 else 0
