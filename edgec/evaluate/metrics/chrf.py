"""chrF over all texts, 0 to 100: F2 of the n-grams of 1 to 6 characters, spaces left out (sacrebleu's chrF2).

Source: Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.metrics import Part, Setting, Stats, Weights
from edgec.evaluate.metrics._texts import predicted_and_right

NEEDS_LABELS = True
HIGHER_IS_BETTER = True
IS_FLAG = False

_ORDERS = 6
_BETA = 2


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 18): of each order the n-grams of the text, of the right one, and those of both."""
    return np.array([_row(*pair) for pair in predicted_and_right(part, setting)], np.float64)


def lost(stats: Stats) -> Stats:
    """Return (n, 18): no n-gram is in both."""
    return np.asarray(stats * np.tile([1, 1, 0], _ORDERS))


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 0 to 100."""
    there, right, both = (weights @ stats).reshape(len(weights), _ORDERS, 3).transpose(2, 0, 1)
    counts = (there > 0) & (right > 0)
    number = np.maximum(counts.sum(axis=1), 1)
    precision, recall = (
        np.divide(both, whole, out=np.zeros_like(both), where=counts).sum(axis=1) / number for whole in (there, right)
    )
    below = _BETA**2 * precision + recall
    above = 100 * (1 + _BETA**2) * precision * recall
    score: NDArray[np.float64] = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return score


def _row(text: str, right: str) -> list[int]:
    row = []
    for order in range(1, _ORDERS + 1):
        a, b = _ngrams(text, order), _ngrams(right, order)
        # n-grams of an order that the right text does not have count for nothing.
        row += [a.total() if b else 0, b.total(), (a & b).total()]
    return row


def _ngrams(text: str, order: int) -> Counter[str]:
    text = "".join(text.split())
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))
