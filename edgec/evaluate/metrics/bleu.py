"""BLEU over all texts, 0 to 100, as sacrebleu counts it by default (13a tokens, exponential smoothing).

Source: Papineni et al., "BLEU", ACL 2002; Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import require
from edgec.evaluate.metrics import Part, Setting, Stats, Weights
from edgec.evaluate.metrics._texts import predicted_and_right

NEEDS_LABELS = True
HIGHER_IS_BETTER = True
IS_FLAG = False


def per_sample(part: Part, setting: Setting) -> Stats:
    """Return (n, 10): n-grams that are right and n-grams of 1 to 4 words, and words of both texts."""
    require("sacrebleu", "metrics")
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)  # of single sentences; the counts are those of all orders
    scores = [bleu.sentence_score(text, [right]) for text, right in predicted_and_right(part, setting)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores], np.float64)


def lost(stats: Stats) -> Stats:
    """Return (n, 10): no n-gram is right, of as many."""
    return np.asarray(stats * np.repeat([0, 1], [4, 6]))


def total(stats: Stats, weights: Weights) -> NDArray[np.float64]:
    """Return (r,), 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    sums = np.rint(weights @ stats).astype(int).tolist()
    scores = [BLEU.compute_bleu(row[:4], row[4:8], row[8], row[9], smooth_method="exp") for row in sums]
    return np.array([score.score for score in scores])
