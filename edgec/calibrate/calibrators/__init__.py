"""Ways to choose the range in which to round a value, a file each; a file's name is the calibrator's in profiles."""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgec.calibrate.histogram import Histogram

Range = tuple[float, float]
Counts = NDArray[np.int64]


class Calibrator(Protocol):
    """The function of a calibrator's file."""

    def find_range(self, histogram: Histogram, levels: int, symmetric: bool) -> Range:
        """Return the lowest and the highest number to keep, with 0 between them; both are 0 where all numbers are.

        Args:
            histogram: of the value.
            levels: how many integers there are: 256 for 8 bits. Of a symmetric range, equally many on each side of 0.
            symmetric: the range must be, which leaves codes unused where numbers lie on one side of 0.
        """
        ...


def calibrators() -> tuple[str, ...]:
    """Return the names of all calibrators."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def calibrator_named(name: str) -> Calibrator:
    """Return one of `calibrators()`."""
    return cast("Calibrator", import_module(f"{__name__}.{name}"))


def by_sides(
    histogram: Histogram,
    levels: int,
    symmetric: bool,
    one: Callable[[Counts, float, int], float],
    both: Callable[[Counts, int, int], Range],
) -> Range:
    """Find a range by sizes alone if it is symmetric or on one side of 0, and by both ends otherwise.

    Everything is in units of bins, and without the numbers that are 0, which every range holds.

    Args:
        histogram: of the value.
        levels: how many integers there are.
        symmetric: the range must be.
        one: takes counts of sizes, the largest size, and how many integers there are above 0; returns the largest size
            to keep.
        both: takes counts from the bin of the lowest number to that of the highest, how many of these bins are below
            0, and the levels; returns a range.
    """
    if not histogram.largest:
        return 0.0, 0.0
    sides, width = histogram.sides.copy(), histogram.width
    sides[1, 0] -= histogram.zeros
    if symmetric:
        clip = one(sides.sum(0), histogram.largest / width, (levels - 1) // 2) * width
        return -clip, clip
    if not histogram.lowest:
        return 0.0, one(sides[1], histogram.highest / width, levels - 1) * width
    if not histogram.highest:
        return -one(sides[0], -histogram.lowest / width, levels - 1) * width, 0.0
    below, above = (np.trim_zeros(side, "b") for side in sides)
    low, high = both(np.concatenate([below[::-1], above]), len(below), levels)
    return low * width, high * width
