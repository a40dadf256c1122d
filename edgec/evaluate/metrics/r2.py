"""Coefficient of determination; of several numbers for each sample, the mean of that of each (scikit-learn).

Where the labels are all the same it is 1 if they are met, else 0.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.evaluate.metrics import Part, Setting, Stats, Weights
from edgec.evaluate.metrics._numbers import predicted_and_right

NEEDS_LABELS = True
HIGHER_IS_BETTER = True
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:  # noqa: ARG001
    """Return (n, 2 d): the labels, and the square error of each."""
    predicted, right = predicted_and_right(part)
    return np.concatenate([right, (predicted - right) ** 2], axis=1)


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 1 at most.

    Raises:
        UsageError: there is a single sample.
    """
    if len(stats) < 2:
        raise UsageError("R2 takes at least two samples", hint="give more samples, or use `mae`")
    right, squares = np.split(stats, 2, axis=1)
    right = right - right.mean(axis=0)  # against cancellation
    number = weights.sum(axis=1, keepdims=True)
    spread = weights @ right**2 - (weights @ right) ** 2 / number
    error = weights @ squares
    # Rounding leaves something of a spread of 0.
    varies = spread > 1e-12 * (weights @ right**2)
    constant = np.where(error == 0, 1.0, 0.0)
    each = 1 - np.divide(error, spread, out=1 - constant, where=varies)
    return np.asarray(each.mean(axis=1))
