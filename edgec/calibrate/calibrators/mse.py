"""Find the range with the smallest mean square of rounding and clipping together.

Numbers are taken to lie evenly in their bins, over which the squared error is integrated. Searched are steps of equal
distance up to the one that clips nothing and, where numbers lie on both sides of 0, every zero point with each of them.

Source: Banner et al. 2019, Post-training 4-bit quantization of convolutional networks (arXiv:1810.05723), which has the
integrals for two distributions.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.calibrators import Counts, Range, by_sides
from edgec.calibrate.histogram import Histogram

Floats = NDArray[np.float64]

_CANDIDATES = 128


def find_range(histogram: Histogram, levels: int, symmetric: bool) -> Range:
    """Return a range of which both ends are codes."""
    return by_sides(histogram, levels, symmetric, _one, _both)


def _one(counts: Counts, largest: float, top: int) -> float:
    candidates = largest * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    errors = _errors(np.trim_zeros(counts, "b"), 0, candidates / top, np.zeros(1, np.int64), top)
    return float(candidates[np.argmin(errors)])


def _both(counts: Counts, below: int, levels: int) -> Range:
    top, zeros = levels - 1, np.arange(levels)
    # With one level less, 0 can be a code wherever the bins lie around it.
    steps = len(counts) / (top - 1) * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    errors = _errors(counts, below, steps, zeros, top)
    step, zero = np.unravel_index(np.argmin(errors), errors.shape)
    return float(-zeros[zero] * steps[step]), float((top - zeros[zero]) * steps[step])


def _errors(counts: Counts, below: int, steps: Floats, zeros: NDArray[np.int64], top: int) -> Floats:
    """Return (steps, zeros): the sums of squares of steps (in bins) and zero points, with codes from 0 to `top`."""
    step = steps[:, None]
    edges = np.arange(-below, len(counts) - below + 1.0)
    until_edge = _rounding(edges, step)
    until_bin = np.cumsum(counts * np.diff(until_edge), axis=1)
    until_bin = np.pad(until_bin, ((0, 0), (1, 0)))

    def rounding(end: Floats) -> Floats:
        """Return what rounding costs below `end` (steps, zeros)."""
        index = np.minimum((end + below).astype(np.intp), len(counts) - 1)
        part = _rounding(end, step) - np.take_along_axis(until_edge, index, 1)
        return np.take_along_axis(until_bin, index, 1) + counts[index] * part

    low, high = np.clip(-zeros * step, edges[0], edges[-1]), np.clip((top - zeros) * step, edges[0], edges[-1])
    return rounding(high) - rounding(low) + _clipping(counts, high + below) + _clipping(counts[::-1], edges[-1] - low)


def _rounding(end: Floats, step: Floats) -> Floats:
    """Return the integral from 0 to `end` of the squared distance to the nearest multiple of `step`."""
    whole = np.rint(end / step)
    return np.asarray(whole * (step**3 / 12) + (end - whole * step) ** 3 / 3)


def _clipping(counts: Counts, end: Floats) -> Floats:
    """Return the sum of squares of the distances of all numbers above `end`, counted from the first edge, to it."""
    numbers = _from_above(counts)
    distances = _from_above(numbers[1:] + counts / 2)  # of numbers above each edge to that edge
    squares = _from_above(2 * distances[1:] + numbers[1:] + counts / 3)
    index = np.minimum(end.astype(np.intp), len(counts) - 1)
    part = index + 1 - end
    outside = squares[index + 1] + part * (2 * distances[index + 1] + part * numbers[index + 1])
    return np.asarray(counts[index] * part**3 / 3 + outside)


def _from_above(x: NDArray[np.float64] | Counts) -> Floats:
    """Return (n + 1,): the sum of what comes at each index and after it."""
    return np.append(np.cumsum(x[::-1], dtype=np.float64)[::-1], 0.0)
