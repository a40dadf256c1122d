"""Keep every number."""

from edgec.calibrate.calibrators import Range
from edgec.calibrate.histogram import Histogram


def find_range(histogram: Histogram, levels: int, symmetric: bool) -> Range:  # noqa: ARG001
    """Return the lowest and the highest number, or the largest size on both sides."""
    if symmetric:
        return -histogram.largest, histogram.largest
    return histogram.lowest, histogram.highest
