"""Ratio of the float model's output to the error of the model, as power over all samples, in decibel."""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights
from edgec.evaluate.metrics._vectors import flat

NEEDS_LABELS = False
HIGHER_IS_BETTER = True
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:  # noqa: ARG001
    """Return (n, 2): the sums of squares of output and error."""
    expected = flat(part.expected, part.valid)
    error = flat(part.values, part.valid) - expected
    return np.stack([(expected**2).sum(axis=1), (error**2).sum(axis=1)], axis=1)


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,): infinite where there is no error."""
    signal, noise = (weights @ stats).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise > 0, 10 * np.log10(signal / noise), np.inf)
