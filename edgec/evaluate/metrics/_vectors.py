"""Outputs as one vector for each sample."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting

Vectors = NDArray[np.float64]


def embeddings(part: Part, setting: Setting) -> tuple[Vectors, Vectors]:
    """Return those of the model and of the float model, (n, d).

    Sequences (n, positions, d) give the mean over what is no padding, or the first; other outputs stay as they are.
    """
    return _pooled(part.values, part, setting), _pooled(part.expected, part, setting)


def flat(values: NDArray[Any], valid: NDArray[np.bool_] | None) -> Vectors:
    """Return all numbers of each sample, (n, numbers); those that are padding, or infinite as masks are, are 0."""
    if valid is not None:
        values = np.where(valid.reshape(*valid.shape, *[1] * (values.ndim - 2)), values, 0)
    numbers = values.reshape(len(values), -1).astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, 0)


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Return (n,): the cosine of the angle between each two rows; 1 where both are 0, 0 where one is."""
    sizes = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both = sizes[0] * sizes[1]
    cosine = np.divide((a * b).sum(axis=1), both, out=np.zeros(len(a)), where=both > 0)
    return np.where((sizes[0] == 0) & (sizes[1] == 0), 1.0, np.clip(cosine, -1, 1))


def _pooled(values: NDArray[Any], part: Part, setting: Setting) -> Vectors:
    if values.ndim != 3:
        return flat(values, part.valid)
    if setting.pooling == "first":
        return values[:, 0].astype(np.float64)
    counted = np.ones(values.shape[:2], bool) if part.valid is None else part.valid
    sums = (values * counted[..., None]).sum(axis=1, dtype=np.float64)
    pooled: Vectors = sums / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    return pooled
