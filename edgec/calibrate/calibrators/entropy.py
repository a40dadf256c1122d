"""Find the range whose integers tell most about the numbers: the smallest KL divergence.

The reference is the counts of the bins inside the range, with what is clipped added to the outermost ones. The
candidate puts the bins together to as many levels as there are integers, and spreads each level evenly over those of
its bins that are not empty. Numbers that are 0 take no part: they are a code of their own, and so many behind a Relu
that they would outweigh everything else.

Ranges end on edges of bins. All are tried where there is one end to choose. Of two ends, those of one size and a grid
of shares are, and then each end alone. Of equally good ranges the widest is taken.

Source: Migacz 2017, 8-bit inference with TensorRT, GPU Technology Conference, for thresholds of sizes; a second end and
levels that are no whole number of bins are ours.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.calibrators import Counts, Range, by_sides
from edgec.calibrate.histogram import Histogram

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_SHARES = np.append(0.87 ** np.arange(32), 0)
_ROUNDING = 1e-12


def find_range(histogram: Histogram, levels: int, symmetric: bool) -> Range:
    """Return a range that holds at least one bin for each level."""
    low, high = by_sides(histogram, levels, symmetric, _one, _both)
    return (low, high) if symmetric else (max(low, histogram.lowest), min(high, histogram.highest))


def _one(counts: Counts, largest: float, top: int) -> float:
    counts = np.trim_zeros(counts, "b")
    stops = np.arange(len(counts), top, -1)
    if not stops.size:
        return largest
    kept = stops[_best(divergences(counts, np.zeros_like(stops), stops, top + 1))]
    return min(largest, float(kept))


def _both(counts: Counts, below: int, levels: int) -> Range:
    above = len(counts) - below
    if len(counts) <= levels:
        return float(-below), float(above)

    def best(lows: Indices, highs: Indices) -> tuple[int, int]:
        wide = lows + highs >= levels
        lows, highs = lows[wide], highs[wide]
        index = _best(divergences(counts, below - lows, below + highs, levels))
        return int(lows[index]), int(highs[index])

    equal = np.arange(max(below, above), 0, -1)
    grid_low, grid_high = np.meshgrid(*(np.rint(side * _SHARES).astype(np.intp) for side in (below, above)))
    lows = np.concatenate([equal.clip(max=below), grid_low.ravel()])
    highs = np.concatenate([equal.clip(max=above), grid_high.ravel()])
    low, high = best(lows, highs)
    lows, highs = np.arange(below, -1, -1), np.arange(above, -1, -1)
    low, high = best(lows, np.full_like(lows, high))
    low, high = best(np.full_like(highs, low), highs)
    return float(-low), float(high)


def _best(divergence: Floats) -> int:
    """Return the first that is as good as any, but for float rounding."""
    return int(np.argmax(divergence <= divergence.min() + _ROUNDING))


def divergences(counts: Counts, starts: Indices, stops: Indices, levels: int) -> Floats:
    """Return (ranges,): the KL divergence of each range of bins; infinite if numbers are clipped to an empty level.

    Args:
        counts: (bins,), some of which are not 0.
        starts: (ranges,) the first bin of each range.
        stops: (ranges,) the bin after its last one; at least `levels` bins from the first.
        levels: how many integers there are.
    """
    until = np.concatenate([[0], np.cumsum(counts)])
    filled_until = np.concatenate([[0], np.cumsum(counts > 0)])
    ends = starts[:, None] + np.rint((stops - starts)[:, None] * (np.arange(levels + 1) / levels)).astype(np.intp)
    inside, filled = np.diff(until[ends]), np.diff(filled_until[ends])
    reference = inside.copy()
    total, kept = until[-1], until[stops] - until[starts]
    within = np.concatenate([[0.0], np.cumsum(_times_log(counts))])
    entropy = within[stops] - within[starts]
    for level, bins, clipped in ((0, starts, until[starts]), (-1, stops - 1, total - until[stops])):
        outermost = counts[bins]
        reference[:, level] += clipped
        filled[:, level] += (clipped > 0) & (outermost == 0)
        entropy += _times_log(outermost + clipped) - _times_log(outermost)
    with np.errstate(divide="ignore"):
        # An empty bin may be all that there is of a level, which then says nothing.
        each = np.where(reference, np.log(inside / np.maximum(filled, 1)), 0.0)
        return np.asarray((entropy - (reference * each).sum(1)) / total - np.log(total) + np.log(np.maximum(kept, 1)))


def _times_log(counts: Counts) -> Floats:
    return np.asarray(counts * np.log(np.maximum(counts, 1)))
