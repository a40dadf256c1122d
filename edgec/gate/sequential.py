"""Bounds for a gate that looks at its data several times, and stops when they say enough."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

# Steps of the grid on which the density of what has not been stopped is kept, and where the first one begins.
_STEPS = 201
_FAR = 9.0


def spent(fraction: float, alpha: float) -> float:
    """Return how much of a one-sided `alpha` may be spent when a fraction (0 to 1] of the data is there.

    Source: Lan and DeMets (1983), the spending function that is like O'Brien and Fleming's bounds.
    """
    from scipy.special import ndtr, ndtri

    return float(2 * ndtr(ndtri(alpha / 2) / np.sqrt(fraction)))


@cache
def levels(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return the one-sided level to test at in each look, so that all looks together err with `alpha`.

    Args:
        fractions: of the planned data that is there at each look, rising; the last is 1.
        alpha: one-sided.

    Source: Armitage, McPherson and Rowe (1969), the density of a sum that has crossed no bound yet, look after look.
    """
    from scipy.special import ndtr

    bounds: list[float] = []
    grid: NDArray[np.float64] = np.zeros(1)
    mass: NDArray[np.float64] = np.ones(1)  # of the score at `grid`, and not stopped; before the first look it is 0
    before = past = 0.0
    for fraction in fractions:
        now = spent(fraction, alpha)
        step = np.sqrt(fraction - before)
        bound = _crossed_by(grid, mass, step, now - past)
        bounds.append(bound / np.sqrt(fraction))
        following = np.linspace(min(-_FAR * np.sqrt(fraction), bound - 1), bound, _STEPS)
        density = (mass * np.exp(-0.5 * ((following[:, None] - grid) / step) ** 2)).sum(axis=1) / step
        weights = np.full(_STEPS, following[1] - following[0])
        weights[[0, -1]] /= 2
        grid, mass = following, density * weights / np.sqrt(2 * np.pi)
        before, past = fraction, now
    return tuple(float(ndtr(-bound)) for bound in bounds)


def _crossed_by(grid: NDArray[np.float64], mass: NDArray[np.float64], step: float, chance: float) -> float:
    """Return the bound above which the next score lies with a chance, together with not having been stopped."""
    from scipy.special import ndtr

    low, high = -_FAR, 12.0 + _FAR
    for _ in range(60):
        middle = (low + high) / 2
        if float((mass * ndtr((grid - middle) / step)).sum()) > chance:
            low = middle
        else:
            high = middle
    return (low + high) / 2
