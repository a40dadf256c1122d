"""Share of predictions of a class that are right: class 1 of two, else the mean over classes."""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights
from edgec.evaluate.metrics._confusion import average, counts, mistaken, pairs

NEEDS_LABELS = True
HIGHER_IS_BETTER = True
TAKES_THRESHOLD = True
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 3): the class that is right, the predicted one, and how many classes there are."""
    return pairs(part, setting)


def lost(stats: Stats) -> Stats:
    """Return (n, 3): another class is predicted than the one that is right."""
    return mistaken(stats)


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 0 to 1."""
    right, predicted, there = counts(stats, weights)
    return average(right, predicted, predicted + there > 0)
