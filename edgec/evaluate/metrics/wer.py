"""Word error rate over all texts: words replaced, left out and added, for each word of the right texts (jiwer)."""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import require
from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._texts import predicted_and_right

NEEDS_LABELS = True
HIGHER_IS_BETTER = False
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 2): words that are wrong, and words of the right text."""
    require("jiwer", "metrics")
    import jiwer

    found = [jiwer.process_words(right, text) for text, right in predicted_and_right(part, setting)]
    rows = [[f.substitutions + f.deletions + f.insertions, f.hits + f.substitutions + f.deletions] for f in found]
    return np.array(rows, np.float64)


def lost(stats: Stats) -> Stats:
    """Return (n, 2): all words of the right text are wrong."""
    return stats[:, [1, 1]]


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,): 0 and more; NaN where the right texts have no words."""
    return ratio(weights @ stats[:, 0], weights @ stats[:, 1])
