"""Means of values that depend on each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgec.evaluate.statistics import clustered_error, clustered_mean, mean


def by_matrices(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Bell and McCaffrey's variance of a regression on a constant, and its degrees of freedom, as they are defined."""
    count = len(values)
    design = np.ones((count, 1))
    hat = design @ design.T / count
    residuals = (np.eye(count) - hat) @ values
    variance, columns = 0.0, []
    for cluster in np.unique(clusters):
        rows = clusters == cluster
        block = np.eye(rows.sum()) - hat[np.ix_(rows, rows)]
        eigenvalues, vectors = np.linalg.eigh(block)
        adjust = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T
        variance += float(design[rows, 0] @ adjust @ residuals[rows]) ** 2 / count**2
        columns.append((np.eye(count) - hat)[:, rows] @ adjust @ design[rows, 0] / count)
    inner = np.stack(columns, axis=1)
    eigenvalues = np.linalg.eigvalsh(inner.T @ inner)
    return variance**0.5, eigenvalues.sum() ** 2 / (eigenvalues**2).sum()


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.integers(0, 99))
def test_is_the_definition(sizes: list[int], seed: int):
    rng = np.random.default_rng(seed)
    clusters = rng.permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    values = rng.standard_normal(len(clusters)) + rng.standard_normal(99)[clusters]
    found = clustered_mean(values, clusters)
    error, freedom = by_matrices(values, clusters)
    assert (found.error, found.freedom) == pytest.approx((error, freedom))
    assert (found.mean, found.clusters) == (pytest.approx(values.mean()), len(sizes))


def test_of_equal_clusters_it_is_the_usual_error():
    rng = np.random.default_rng(0)
    values, clusters = rng.standard_normal(60), np.repeat(np.arange(12), 5)
    found = clustered_mean(values, clusters)
    assert found.error == pytest.approx(clustered_error(values, clusters))
    assert found.freedom == pytest.approx(11)


def test_of_single_values_it_is_students():
    values = np.random.default_rng(0).standard_normal(9)
    found = clustered_mean(values, np.arange(9))
    assert found.error == pytest.approx(mean(values)[1])
    low, high = stats.t.interval(0.9, 8, found.mean, found.error)
    assert (found.limit(0.05), found.limit(0.95)) == pytest.approx((low, high))


@pytest.mark.parametrize("sizes", [[400] * 40, [40, 80, 160, 320] * 10, [4000, 3000, *[200] * 20], [500] * 5])
def test_intervals_hold_the_truth_as_often_as_they_say(sizes: list[int]):
    """Also for few clusters and for very unequal ones; tokens with an effect of their document."""
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    held, usual = 0, 0
    for _ in range(1000):
        values = 0.3 * rng.standard_normal(len(clusters)) + 0.02 * rng.standard_normal(len(sizes))[clusters]
        found = clustered_mean(values, clusters)
        held += found.limit(0.025) <= 0 <= found.limit(0.975)
        usual += abs(found.mean) <= 1.96 * mean(values)[1]
    assert 930 <= held <= 970
    assert usual < held - 50  # the error of independent tokens is too small
