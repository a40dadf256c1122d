"""How many times it takes to tell a percentile."""

import numpy as np
import pytest
from scipy.stats import binom

from edgec.measure.percentiles import percentile_words, percentiles, sample_size


def test_sample_sizes_are_those_of_loadgen():
    assert [sample_size(percentile) for percentile in (50, 90, 99)] == [11, 64, 662]


@pytest.mark.parametrize("percentile", [50, 75, 90, 99])
def test_a_sample_is_as_small_as_its_confidence_allows(percentile):
    size = sample_size(percentile)
    beyond = 1 - percentile / 100
    assert binom.cdf(1, size, beyond) <= 0.01 < binom.cdf(1, size - 1, beyond)


@pytest.mark.parametrize(("shape", "known"), [((1,), 1), ((7, 9), 1), ((8, 8), 2), (661, 2), (662, 3)])
def test_what_the_sample_is_too_small_for_is_not_told(shape, known):
    times = np.random.default_rng(0).random(shape)
    found = percentiles(times)
    assert found == (*np.percentile(times, (50, 90, 99)[:known]), *[None] * (3 - known))
    assert percentile_words(*found).count("p") == known


def test_words():
    assert percentile_words(1.234, 2.0, None) == "p50 1.23, p90 2.00 ms"
