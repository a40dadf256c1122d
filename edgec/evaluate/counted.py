"""What a model loses of a metric that counts what is right, in samples.

Where few samples differ a bootstrap knows too little: it draws no other differences than those.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgec.evaluate.paired import Stats, Total, score_limit

# Numbers in one block of weights: 8 MiB.
_AT_ONCE = 2**20
# What rounding leaves.
_NOTHING = 1e-12


class Counted(NamedTuple):
    """What samples lost and won, as a number of samples that are wholly lost or won: parts of one count as parts.

    Attributes:
        lost: by the other model.
        won: alike.
        differ: samples that differ; of a few large differences and many small ones hardly more than the few (Kish).
        samples: all of them.
        worth: what one sample is worth, in the metric's unit.
    """

    lost: float
    won: float
    differ: float
    samples: int
    worth: float

    def limit(self, level: float) -> float:
        """Return what the true loss is below with a chance of `level`, as `score_limit` does, in the metric's unit.

        Of all samples that lose as much in the mean, those that are wholly lost or not at all vary most: where parts
        are lost, the interval is too wide rather than too short.
        """
        lost = min(self.lost, self.samples)
        won = min(self.won, self.samples - lost)
        return self.worth * self.samples * score_limit(lost, won, self.samples, level)


def count_losses(reference: Stats, test: Stats, wrong: Stats, loss: Total) -> Counted | None:
    """Return what is lost and won from one model to the other, sample by sample.

    A sample may be worth more than its share: one of a few positives, or a long text. Losses are taken to strike
    samples in proportion to their worth, as they do where each word is as likely to be lost as any other: the worth of
    one is then the mean over samples, weighted with itself. Of equal ones it is that of each.

    Args:
        reference: (n, k), as for `interval`.
        test: the same of the other model.
        wrong: the same of a model that gets each sample wholly wrong.
        loss: as `total` there, but more is worse.

    Returns:
        None where there is nothing to lose.
    """
    worths = _effects(reference, wrong, loss).clip(min=0)
    if worths.max() < _NOTHING:
        return None
    worth = _square(worths) / float(worths.sum())
    effects = _effects(reference, test, loss) / worth
    lost, won = float(effects.clip(min=0).sum()), float((-effects).clip(min=0).sum())
    differ = (lost + won) ** 2 / _square(effects) if effects.any() else 0.0
    return Counted(lost, won, differ, len(reference), worth)


def _effects(reference: Stats, other: Stats, loss: Total) -> NDArray[np.float64]:
    """Return (n,): how the loss changes when a single sample is the other model's."""
    both, count = np.concatenate([reference, other]), len(reference)
    # Many samples are alike where there are few classes.
    _, kinds, inverse = np.unique(np.hstack([reference, other]), axis=0, return_index=True, return_inverse=True)
    whole = np.repeat([1.0, 0.0], count)
    at_once = max(1, _AT_ONCE // (2 * count))
    found = []
    for first in range(0, len(kinds), at_once):
        some = kinds[first : first + at_once]
        weights = np.tile(whole, (len(some), 1))
        each = np.arange(len(some))
        weights[each, some], weights[each, count + some] = 0, 1
        found.append(loss(both, weights))
    changes: NDArray[np.float64] = np.concatenate(found) - loss(both, whole[None])
    return np.where((reference != other).any(axis=1), changes[inverse.reshape(-1)], 0.0)


def _square(values: NDArray[np.float64]) -> float:
    return float((values**2).sum())
