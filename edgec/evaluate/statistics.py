"""Means with their standard errors."""

from typing import NamedTuple

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


class ClusteredMean(NamedTuple):
    """A mean of values of which those of one cluster depend on each other.

    Attributes:
        mean: of all values.
        error: its standard error.
        freedom: degrees of freedom of the error; one less than there are clusters if all are equally large.
        clusters: how many there are.
    """

    mean: float
    error: float
    freedom: float
    clusters: int

    def limit(self, level: float) -> float:
        """Return what the true mean is below with a chance of `level`, 0 to 1, by Student's t; needs scipy."""
        from scipy.special import stdtrit

        return self.mean + float(stdtrit(self.freedom, level)) * self.error


def clustered_mean(values: Values, clusters: NDArray[np.int64]) -> ClusteredMean:
    """Return the mean of values in two clusters or more, with an error that also holds for few and unequal ones.

    The squared sum of each cluster's residuals is divided by the share of values outside of it, without which it would
    be too small; for equal clusters that is the error of `clustered_error`. A few large clusters among many say little
    about how clusters differ, which is what the degrees of freedom count.

    Source: Bell and McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage samples",
    Survey Methodology 28, 2002 (bias-reduced linearization and Satterthwaite's degrees of freedom), for a mean.
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, values - values.mean())
    share = np.bincount(index) / len(values)
    squared, weight = share**2, 1 / (1 - share)
    # Of the sums' covariance, share_g - share_g^2 on the diagonal and -share_g share_h off it, for independent values.
    spread = squared.sum() + (weight * squared).sum() ** 2 - ((weight * squared) ** 2).sum()
    error = float(np.sqrt((weight * sums**2).sum()) / len(values))
    return ClusteredMean(float(values.mean()), error, float(1 / spread), len(sums))
