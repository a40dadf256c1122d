"""Mean absolute error, over all numbers."""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._numbers import predicted_and_right

NEEDS_LABELS = True
HIGHER_IS_BETTER = False
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:  # noqa: ARG001
    """Return (n, 1): the mean absolute error."""
    predicted, right = predicted_and_right(part)
    return np.asarray(np.abs(predicted - right).mean(axis=1, keepdims=True))


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), in the unit of the labels."""
    return ratio(weights @ stats[:, 0], weights.sum(axis=1))
