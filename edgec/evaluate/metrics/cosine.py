"""Mean cosine of the angle between the embeddings of the model and of the float model."""

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._vectors import cosines, embeddings

NEEDS_LABELS = False
HIGHER_IS_BETTER = True
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 1): the cosine."""
    return cosines(*embeddings(part, setting))[:, None]


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), -1 to 1."""
    return ratio(weights @ stats[:, 0], weights.sum(axis=1))
