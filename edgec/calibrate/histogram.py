"""A histogram of numbers that stream by: one pass, bounded memory, whatever the order."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BINS = 2048
"""On each side of 0."""

_PIECE = 1 << 14  # numbers whose temporaries stay in the cache of a core
_LARGEST = float(np.finfo(np.float32).max)
_LEAST_LIMIT = 2.0**-116  # BINS / limit is still a float32 number


class Histogram:
    """Counts of numbers in bins of one width, which doubles when a larger number comes: all the memory it takes.

    Edges are multiples of a power of two, so pairs of bins merge exactly: the counts are those of all numbers at once,
    whatever the order that they come in. A number on an edge belongs to the bin that is farther from 0.

    Attributes:
        sides: (2, bins) int64 by size, those below 0 in the first row; bin i holds sizes from i to i + 1 widths.
        limit: what the bins reach, on each side; a power of two above every size, 0 as long as all numbers are 0.
        lowest: the lowest number, exactly; 0 where none is below 0.
        highest: the highest number, exactly; 0 where none is above 0.
        zeros: how many numbers are 0, which are also in the first bin above 0.
    """

    def __init__(self) -> None:
        self.sides = np.zeros((2, BINS), np.int64)
        self.limit = 0.0
        self.lowest = 0.0
        self.highest = 0.0
        self.zeros = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """(bins,) counts of sizes, from 0 to `limit`."""
        return np.asarray(self.sides.sum(0))

    @property
    def width(self) -> float:
        """The width of a bin."""
        return self.limit / BINS

    @property
    def largest(self) -> float:
        """The largest size."""
        return max(self.highest, -self.lowest)

    def add(self, x: Array) -> None:
        """Count the numbers of an array of any shape.

        Raises:
            ValueError: one is not finite, or too large for float32; the histogram is of no use any more.
        """
        flat = x.reshape(-1)
        kind = np.result_type(x.dtype, np.float32)  # products with powers of two are exact in both kinds of float
        for start in range(0, flat.size, _PIECE):
            self._count(flat[start : start + _PIECE].astype(kind, copy=False))

    def _count(self, x: Array) -> None:
        low, high = float(x.min()), float(x.max())
        if not max(-low, high) <= _LARGEST:
            raise ValueError("numbers that are not finite")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        below = int(np.count_nonzero(x < 0))
        self.zeros += x.size - below - int(np.count_nonzero(x > 0))
        if not self.largest:
            self.sides[1, 0] += x.size  # of any width
            return
        self._widen(math.ldexp(1.0, math.frexp(self.largest)[1]))  # more than the largest: no number is on the edge
        bins = (x * x.dtype.type(BINS / self.limit)).astype(np.intp)  # cut off towards 0
        bins += BINS - 1
        # The bins next to 0 share a count, of which those below 0 are what the others on that side lack.
        counts = np.bincount(bins, minlength=2 * BINS - 1)
        small = below - counts[: BINS - 1].sum()
        self.sides[0, 1:] += counts[BINS - 2 :: -1]
        self.sides[1] += counts[BINS - 1 :]
        self.sides[:, 0] += small, -small

    def _widen(self, limit: float) -> None:
        self.limit = self.limit or max(limit, _LEAST_LIMIT)
        while self.limit < limit:
            self.sides = np.pad(self.sides.reshape(2, -1, 2).sum(2), ((0, 0), (0, BINS // 2)))
            self.limit *= 2
