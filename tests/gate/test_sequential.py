"""The bounds of repeated looks, beside published ones and beside what they promise."""

import numpy as np
import pytest
from scipy.special import ndtri

from edgec.gate.sequential import levels, spent


def bounds(fractions, alpha):
    return [-ndtri(level) for level in levels(tuple(fractions), alpha)]


@pytest.mark.parametrize(
    ("looks", "published"),
    [
        (1, [1.9600]),
        (3, [3.7103, 2.5114, 1.9930]),
        (4, [4.3326, 2.9631, 2.3590, 2.0141]),
        (5, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
    ],
)
def test_equal_looks_have_the_bounds_of_lan_and_demets(looks, published):
    # One-sided 0.025, as in tables of the Lan-DeMets O'Brien-Fleming spending function.
    assert bounds(np.arange(1, looks + 1) / looks, 0.025) == pytest.approx(published, abs=2e-4)


def test_all_is_spent_at_the_end():
    assert spent(1.0, 0.025) == pytest.approx(0.025)
    assert 0 < spent(0.25, 0.025) < 1e-4


@pytest.mark.parametrize("fractions", [(1.0,), (0.5, 1.0), (0.3, 0.35, 1.0), (0.2, 0.4, 0.6, 0.8, 1.0)])
@pytest.mark.parametrize("alpha", [0.025, 0.005])
def test_looks_together_err_as_often_as_wanted(fractions, alpha):
    rng = np.random.default_rng(0)
    steps = np.diff([0.0, *fractions])
    scores = np.cumsum(rng.normal(0, np.sqrt(steps), (400_000, len(steps))), axis=1) / np.sqrt(fractions)
    crossed = (scores > bounds(fractions, alpha)).any(axis=1).mean()
    assert crossed == pytest.approx(alpha, abs=5 * np.sqrt(alpha / 400_000))


def test_early_looks_are_harder_to_pass():
    found = levels((0.25, 0.5, 0.75, 1.0), 0.025)
    assert list(found) == sorted(found)
    assert found[-1] < 0.025
