"""Streaming histograms, against numpy's."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgec.calibrate.histogram import BINS, Histogram

ANY = hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def filled(*pieces):
    histogram = Histogram()
    for piece in pieces:
        histogram.add(piece)
    return histogram


def heavy_tailed(seed, size=40_000):
    return np.random.default_rng(seed).standard_t(2, size).astype(np.float32)


def state(histogram):
    return (histogram.sides.tolist(), histogram.limit, histogram.lowest, histogram.highest, histogram.zeros)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_bins_that_doubled_count_what_bins_of_the_last_width_count(seed, kind):
    x = (heavy_tailed(seed) * 10.0 ** np.random.default_rng(seed).integers(-30, 30)).astype(kind)
    pieces = np.array_split(x[np.argsort(np.abs(x))], 13)  # each one needs wider bins
    histogram = filled(*pieces)
    sizes = np.abs(x.astype(np.float64))
    for side, some in zip(histogram.sides, (sizes[x < 0], sizes[x >= 0]), strict=True):
        np.testing.assert_array_equal(side, np.histogram(some, BINS, (0, histogram.limit))[0])
    np.testing.assert_array_equal(histogram.counts, np.histogram(sizes, BINS, (0, histogram.limit))[0])
    assert histogram.limit / 2 <= sizes.max() < histogram.limit
    assert (histogram.lowest, histogram.highest, histogram.zeros) == (x.min(), x.max(), 0)


@given(ANY, ANY, ANY)
def test_neither_order_nor_pieces_change_anything(a, b, c):
    whole = filled(np.concatenate([a, b, c]))
    assert state(whole) == state(filled(a, b, c)) == state(filled(c, b, a))
    assert whole.sides.sum() == a.size + b.size + c.size
    numbers = np.concatenate([a, b, c, [0]])
    assert (whole.lowest, whole.highest) == (numbers.min(), numbers.max())
    assert whole.zeros == np.count_nonzero(numbers == 0) - 1


def test_a_number_on_an_edge_belongs_to_the_bin_that_is_farther_from_zero():
    histogram = filled(np.array([1.0]), np.array([-2.0]), np.array([4.0]))
    assert [side.nonzero()[0].tolist() for side in histogram.sides] == [[512], [256, 1024]]
    assert filled(np.array([1.0]), np.array([4.0])).counts.nonzero()[0].tolist() == [256, 1024]


def test_zeros_are_counted_before_there_is_a_width():
    histogram = filled(np.zeros(10), -np.zeros((2, 3)), np.zeros(0))
    assert (histogram.largest, histogram.counts.sum(), histogram.zeros) == (0, 16, 16)
    histogram.add(np.array([3.0, 0.0]))
    assert (histogram.largest, histogram.sides[1, 0], histogram.zeros) == (3, 17, 17)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_])
def test_other_types_count_as_the_numbers_that_they_are(kind):
    x = np.random.default_rng(0).integers(-100, 100, 1000).astype(kind)
    assert state(filled(x)) == state(filled(x.astype(np.float64)))


def test_views_count_as_their_copies():
    x = heavy_tailed(0).reshape(200, -1)
    assert state(filled(x.T[::3])) == state(filled(x.T[::3].copy()))


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-30])
def test_tiny_numbers(scale):
    x = np.float32(scale) * np.arange(-3, 4, dtype=np.float32)
    histogram = filled(x)
    assert (histogram.lowest, histogram.highest, histogram.zeros) == (x.min(), x.max(), 1)
    assert histogram.sides.sum() == 7
    assert histogram.highest < histogram.limit


def test_the_largest_numbers():
    largest = np.finfo(np.float32).max
    histogram = filled(np.array([1e-45, largest, -largest, 1], np.float32))
    assert (histogram.lowest, histogram.highest) == (-largest, largest)
    assert histogram.sides[:, [0, -1]].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("place", [0, 50_000])
def test_numbers_that_are_not_finite_are_refused(bad, place):
    x = np.ones(100_000)
    x[place] = bad
    with pytest.raises(ValueError, match="not finite"):
        filled(x)


def test_memory_is_that_of_the_counts():
    histogram = filled(*(heavy_tailed(seed) for seed in range(3)))
    assert histogram.sides.nbytes == 2 * BINS * 8
