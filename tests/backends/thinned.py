"""All combinations of what a test is tried with; by default one of a few."""

from collections.abc import Sequence
from itertools import product

import pytest


def thinned(*axes: Sequence[object], keep: int) -> list[object]:
    """Return all combinations, of which all but every `keep`-th are marked slow; tuples are several parameters.

    Those that are left are spread so that each pair of values of two axes is among them, where there are three axes and
    none is shorter than `keep`; of two axes, that each value is.
    """
    found = []
    for numbers in product(*(range(len(axis)) for axis in axes)):
        marks = [] if sum(numbers) % keep == 0 else [pytest.mark.slow]
        chosen = [axis[number] for axis, number in zip(axes, numbers, strict=True)]
        values = [value for each in chosen for value in (each if isinstance(each, tuple) else (each,))]
        found.append(pytest.param(*values, marks=marks))
    return found
