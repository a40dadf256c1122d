"""Share of labels that have one of the five highest scores.

Labels are classes (n,), or one for each position (n, ...); -100 counts for nothing.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._scores import hits

NEEDS_LABELS = True
HIGHER_IS_BETTER = True
IS_FLAG = True


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 2): labels that are right, and labels."""
    return hits(part, setting, 5)


def lost(stats: Stats) -> Stats:
    """Return (n, 2): no label is right, and as many."""
    return stats * [0, 1]


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 0 to 1."""
    return ratio(weights @ stats[:, 0], weights @ stats[:, 1])
