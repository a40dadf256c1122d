"""Means with their standard errors."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def mean(values: Values) -> tuple[float, float]:
    """Return the mean of at least two values, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def exp_of_mean(values: Values) -> tuple[float, float]:
    """Return exp(mean) and its standard error by the delta method."""
    centre, error = mean(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.exp(centre)), float(np.exp(centre) * error)


def clustered_error(values: Values, clusters: NDArray[np.int64]) -> float | None:
    """Return the standard error of the mean when values of one cluster depend on each other; None for one cluster.

    Source: Liang and Zeger (1986), the cluster-robust variance, with the factor G / (G - 1) for G clusters.
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, values - values.mean())
    if len(sums) < 2:
        return None
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values))
