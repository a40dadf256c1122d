"""Share of the nearest neighbours of a sample, by the float model's embeddings, that the model's embeddings find.

Neighbours are the other samples with the largest cosine; of equal ones the first. Intervals are over the samples that
are searched for, among the same ones each time.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._vectors import Vectors, embeddings

NEEDS_LABELS = False
HIGHER_IS_BETTER = True
IS_FLAG = False

_AT_ONCE = 256


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 2 d): both embeddings, of length 1."""
    return np.concatenate([_unit(vectors) for vectors in embeddings(part, setting)], axis=1)


def finish(stats: Stats, setting: Setting) -> Stats:
    """Return (n, 1): the share of neighbours that are found.

    Raises:
        UsageError: there are so few samples that all of them are neighbours.
    """
    wanted = setting.neighbours
    if len(stats) < wanted + 2:
        raise UsageError(
            f"to look for {wanted} neighbours takes at least {wanted + 2} samples, not {len(stats)}",
            hint="give more samples, or use `cosine`",
        )
    test, reference = np.split(stats, 2, axis=1)
    found = np.empty((len(stats), 1))
    for first in range(0, len(stats), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        a, b = (_nearest(vectors, rows, wanted) for vectors in (test, reference))
        found[rows, 0] = (a[:, :, None] == b[:, None, :]).any(axis=2).mean(axis=1)
    return found


def lost(stats: Stats) -> Stats:
    """Return (n, 1): no neighbour is found."""
    return np.zeros_like(stats)


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 0 to 1."""
    return ratio(weights @ stats[:, 0], weights.sum(axis=1))


def _unit(vectors: Vectors) -> Vectors:
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Vectors = np.divide(vectors, sizes, out=np.zeros_like(vectors), where=sizes > 0)
    return units


def _nearest(vectors: Vectors, rows: slice, wanted: int) -> NDArray[np.int64]:
    likeness = vectors[rows] @ vectors.T
    own = np.arange(len(vectors))[rows]
    likeness[np.arange(len(own)), own] = -np.inf
    return np.argsort(-likeness, axis=1, kind="stable")[:, :wanted]
