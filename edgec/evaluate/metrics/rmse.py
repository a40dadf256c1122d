"""Root of the mean square error; of several numbers for each sample, the mean of the root of each (scikit-learn)."""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._numbers import predicted_and_right

NEEDS_LABELS = True
HIGHER_IS_BETTER = False
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:  # noqa: ARG001
    """Return (n, d): the square error of each number."""
    predicted, right = predicted_and_right(part)
    return (predicted - right) ** 2


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), in the unit of the labels."""
    each = np.sqrt(ratio(weights @ stats, weights.sum(axis=1, keepdims=True)))
    return np.asarray(each.mean(axis=1))
