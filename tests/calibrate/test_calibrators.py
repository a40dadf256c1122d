"""Calibrators: each against a search or the formulas written out, and all against what any must do."""

import time
from itertools import pairwise

import numpy as np
import pytest

from edgec.calibrate.calibrators import calibrator_named, calibrators, entropy
from edgec.calibrate.histogram import BINS, Histogram

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=100_000)
OUTLIERS = np.concatenate([NORMAL, RANDOM.uniform(-50, 50, 10)])
NUMBERS = {
    "normal": NORMAL,
    "outliers": OUTLIERS,
    "relu": np.maximum(NORMAL, 0),
    "shifted": NORMAL + 2,
    "uniform": RANDOM.uniform(-1, 3, 100_000),
    "heavy tails": RANDOM.standard_t(2, 100_000),
    "laplace": RANDOM.laplace(size=100_000),
    "relu6": np.clip(2 * NORMAL + 2, 0, 6),
    "gelu": NORMAL * (np.tanh(0.8 * NORMAL) + 1) / 2,
    "lopsided": np.concatenate([NORMAL - 1, np.full(30, 40.0)]),
    "integers": np.arange(100.0),
    "below": -np.abs(NORMAL),
    "one bin": 1 + np.arange(100) * 1e-9,
}
KINDS = pytest.mark.parametrize("symmetric", [True, False])
EACH = pytest.mark.parametrize("name", calibrators())


def counted(*pieces):
    histogram = Histogram()
    for piece in pieces:
        histogram.add(np.asarray(piece, np.float32))
    return histogram


def found(name, numbers, symmetric, levels=256):
    return calibrator_named(name).find_range(counted(numbers), levels, symmetric)


def cost(numbers, low, high, symmetric):
    """Return the mean square of rounding to int8 around 0, or to uint8 with a zero point."""
    if symmetric:
        scale = high / 127
        return np.square(np.clip(np.rint(numbers / scale), -127, 127) * scale - numbers).mean()
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.square((np.clip(np.rint(numbers / scale) + zero, 0, 255) - zero) * scale - numbers).mean()


def test_the_folder_is_the_registry():
    assert calibrators() == ("entropy", "minmax", "mse", "percentile")


@EACH
@KINDS
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_any_range(name, symmetric, numbers):
    low, high = found(name, numbers, symmetric)
    step = np.ptp(np.append(numbers, 0)) / 254  # of a search in which 0 is a code
    assert low <= 0 <= high
    assert low < high
    if symmetric:
        assert low == -high
        assert high <= np.abs(numbers).max().astype(np.float32)
    else:
        assert numbers.min() - step <= low or low == 0
        assert high <= max(numbers.max().astype(np.float32), 0) + step
    assert low < 0 or numbers.min() >= 0 or name == "percentile" or symmetric
    if symmetric or name != "entropy":  # of two ends, it searches one before the other
        assert found(name, -numbers, symmetric) == pytest.approx((-high, -low), rel=0.01, abs=2 * step)


@EACH
@KINDS
def test_order_and_pieces_change_nothing(name, symmetric):
    find_range = calibrator_named(name).find_range
    pieces = np.array_split(NUMBERS["heavy tails"], 7)
    ranges = {find_range(counted(*some), 256, symmetric) for some in (pieces, pieces[::-1], [np.concatenate(pieces)])}
    assert len(ranges) == 1


@EACH
@KINDS
def test_scaling_the_numbers_scales_the_range(name, symmetric):
    low, high = found(name, OUTLIERS, symmetric)
    for power in (-80, 3, 90):
        assert found(name, np.ldexp(OUTLIERS, power), symmetric) == (np.ldexp(low, power), np.ldexp(high, power))


@EACH
def test_zeros_alone(name):
    assert found(name, np.zeros(5), True) == found(name, np.zeros(5), False) == found(name, [], False) == (0, 0)


@EACH
@pytest.mark.parametrize("numbers", [[5.3], [5.3] * 1000, [0, 5.3], [0] * 50 + [5.3] * 50])
def test_one_value_is_kept(name, numbers):
    largest = float(np.float32(5.3))
    assert found(name, numbers, False) == (0, largest)
    assert found(name, np.negative(numbers), False) == (-largest, 0)
    assert found(name, numbers, True) == (-largest, largest)


@pytest.mark.parametrize("name", ["entropy", "percentile"])
@pytest.mark.parametrize("numbers", [[1, 2, 3], [-1, 2, 3], [-3, -1], NORMAL[:100]])
def test_few_numbers_are_kept(name, numbers):
    largest = np.abs(numbers).max().astype(np.float32)
    expected = np.append(numbers, 0).astype(np.float32)
    assert found(name, numbers, False) == (expected.min(), expected.max())
    assert found(name, numbers, True) == (-largest, largest)


@EACH
@KINDS
def test_denormals_and_a_huge_dynamic_range(name, symmetric):
    for numbers in ([1e-45, -3e-45], [1e-30, 3e38, -1e10], [-3.4e38, 3.4e38, 1]):
        low, high = found(name, numbers, symmetric)
        assert low <= 0 < high
        assert np.isfinite([low, high]).all()


@KINDS
def test_what_is_even_is_not_clipped_and_outliers_are(symmetric):
    uniform = NUMBERS["uniform"]
    for name in calibrators():
        assert found(name, uniform, symmetric)[1] == pytest.approx(3, rel=0.02)
    for name, most in {"entropy": 8, "percentile": 5}.items():
        low, high = found(name, OUTLIERS, symmetric)
        assert 3 < high < most
        assert 3 < -low < most
    assert found("mse", np.append(NORMAL, 20.0), symmetric)[1] < 18


@KINDS
def test_minmax_is_exact(symmetric):
    expected = OUTLIERS.min().astype(np.float32), OUTLIERS.max().astype(np.float32)
    largest = np.abs(expected).max()
    assert found("minmax", OUTLIERS, symmetric) == ((-largest, largest) if symmetric else expected)


def test_percentile_against_numpy():
    for numbers in (NUMBERS["heavy tails"], NUMBERS["lopsided"], NUMBERS["gelu"]):
        width = counted(numbers).width
        clip = np.quantile(np.abs(numbers), 0.9999)
        assert found("percentile", numbers, True)[1] == pytest.approx(clip, abs=2 * width)
        ends = np.quantile(numbers, [0.00005, 0.99995])
        assert found("percentile", numbers, False) == pytest.approx(ends, abs=2 * width)
    above = NUMBERS["relu"]
    clip = np.quantile(above, 0.9999)
    assert found("percentile", above, False) == (0, pytest.approx(clip, abs=2 * counted(above).width))


@KINDS
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_mse_costs_no_more_than_any_range_of_a_grid(symmetric, numbers):
    shares = np.linspace(0.05, 1, 20)
    low, high = found("minmax", numbers, symmetric)
    grid = [(low * a, high * b) for a in shares for b in (shares if low and high and not symmetric else [a])]
    best = min(cost(numbers, *range_, symmetric) for range_ in grid)
    assert cost(numbers, *found("mse", numbers, symmetric), symmetric) <= 1.02 * best + 1e-12


def test_ends_of_mse_are_codes():
    low, high = found("mse", NUMBERS["gelu"], False)
    scale = (high - low) / 255
    assert low / scale == pytest.approx(np.rint(low / scale), abs=1e-9)


def divergence(counts, start, stop, levels):
    """Return the KL divergence, by the definition."""
    reference = counts[start:stop].astype(float)
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    candidate = np.zeros_like(reference)
    edges = np.rint((stop - start) * np.arange(levels + 1) / levels).astype(int)
    for first, last in pairwise(edges):
        filled = reference[first:last] > 0
        candidate[first:last][filled] = counts[start:stop][first:last].sum() / max(filled.sum(), 1)
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1)
    with np.errstate(divide="ignore"):
        return np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))


@pytest.mark.parametrize("density", [0.2, 3, 100])
def test_divergences_are_those_of_the_definition(density):
    random = np.random.default_rng(1)
    counts = random.poisson(density * np.exp(-np.abs(np.linspace(-4, 3, 400))))
    starts, stops = random.integers(0, 150, 200), random.integers(200, 401, 200)
    found = entropy.divergences(counts, starts, stops, 16)
    expected = [divergence(counts, *bounds, 16) for bounds in zip(starts, stops, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_divergences_where_all_is_clipped():
    counts = np.array([5, 0, 0, 0, 0, 0, 5])
    assert entropy.divergences(counts, np.array([1]), np.array([5]), 2) == np.inf


@pytest.mark.parametrize("numbers", [NORMAL, OUTLIERS, NUMBERS["laplace"], NUMBERS["relu"]])
def test_entropy_finds_the_best_size(numbers):
    histogram = counted(numbers)
    counts = histogram.counts.copy()
    counts[0] -= histogram.zeros
    used = np.flatnonzero(counts).max() + 1
    clip = calibrator_named("entropy").find_range(histogram, 256, symmetric=True)[1]
    reached = divergence(counts, 0, min(int(np.ceil(clip / histogram.width)), used), 128)
    assert reached <= min(divergence(counts, 0, stop, 128) for stop in [*range(128, used, 5), used]) + 1e-12


@pytest.mark.parametrize("name", ["normal", "outliers", "shifted", "laplace", "gelu", "lopsided", "uniform"])
def test_entropy_of_two_ends_is_nearly_the_best_of_a_finer_grid(name):
    histogram = counted(NUMBERS[name])
    counts = np.concatenate([histogram.sides[0, ::-1], histogram.sides[1]])
    low, high = calibrator_named("entropy").find_range(histogram, 256, symmetric=False)
    bounds = np.array([[np.floor(low / histogram.width)], [np.ceil(high / histogram.width)]]).astype(int) + BINS
    (reached,) = entropy.divergences(counts, *bounds, 256)
    most, least = (int(np.ceil(end / histogram.width)) for end in (histogram.highest, histogram.lowest))
    grid = np.array([(a, b) for a in range(least, 1, 8) for b in range(most, -1, -8) if b - a >= 256]) + BINS
    best = entropy.divergences(counts, *grid.T, 256).min()
    (widest,) = entropy.divergences(counts, *np.array([[least - 1], [most]]) + BINS, 256)
    assert reached - best <= 0.1 * (widest - best) + 1e-4


@EACH
def test_ranges_are_found_quickly(name):
    histogram = counted(OUTLIERS)
    start = time.process_time()
    calibrator_named(name).find_range(histogram, 256, symmetric=False)
    assert time.process_time() - start < 0.2
