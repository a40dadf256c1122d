"""Share of predictions that are the float model's: the class with the highest score, or the number itself of integers.

Sequences count all positions that are no padding.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._scores import class_scores

NEEDS_LABELS = False
HIGHER_IS_BETTER = True
TAKES_THRESHOLD = True
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 2): predictions that agree, and predictions."""
    values, expected = part.values, part.expected
    if values.dtype.kind == "f":
        values, expected = (class_scores(scores, setting).argmax(axis=-1) for scores in (values, expected))
    same = (values == expected).reshape(len(values), -1)
    counted = np.ones(same.shape, bool)
    if part.valid is not None and values.ndim > 1:
        counted = np.broadcast_to(part.valid.reshape(*part.valid.shape, *[1] * (values.ndim - 2)), values.shape)
        counted = counted.reshape(same.shape)
    return np.stack([(same & counted).sum(axis=1), counted.sum(axis=1)], axis=1).astype(np.float64)


def lost(stats: Stats) -> Stats:
    """Return (n, 2): no prediction agrees, and as many."""
    return stats * [0, 1]


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 0 to 1."""
    return ratio(weights @ stats[:, 0], weights @ stats[:, 1])
