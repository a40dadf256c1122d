"""Precision and recall by class: of class 1 where there are two classes, else the mean over classes (macro).

As scikit-learn has it: the mean is over the classes that occur among labels or predictions, and 0 / 0 counts as 0.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.evaluate.metrics import Part, Setting, Stats, Weights, ratio
from edgec.evaluate.metrics._scores import IGNORED, class_scores, true_classes

Counts = NDArray[np.float64]


def pairs(part: Part, setting: Setting) -> Stats:
    """Return (n, 3): the class that is right, the predicted one, and how many there are.

    Raises:
        UsageError: there is not one label for each sample, or it is outside of the classes.
    """
    scores = class_scores(part.values, setting)
    truth = true_classes(part, scores)
    if truth.ndim > 1 or (truth == IGNORED).any():
        raise UsageError("precision, recall and F1 take one class for each sample", hint="use `top1`")
    columns = [truth, scores.argmax(axis=1), np.full(len(truth), scores.shape[1])]
    return np.stack(columns, axis=1).astype(np.float64)


def mistaken(stats: Stats) -> Stats:
    """Return (n, 3): the same samples, all taken for the class that is most frequent, or the second of these."""
    truth = stats[:, 0]
    first, second = np.argsort(-np.bincount(truth.astype(np.int64), minlength=int(stats[0, 2])), kind="stable")[:2]
    return np.stack([truth, np.where(truth == first, second, first), stats[:, 2]], axis=1)


def counts(stats: Stats, weights: Weights) -> tuple[Counts, Counts, Counts]:
    """Return (r, classes) each: samples of each class that are right, that are predicted, and that there are."""
    truth, predicted, classes = stats[:, 0].astype(np.int64), stats[:, 1].astype(np.int64), int(stats[0, 2])
    first = classes * np.arange(len(weights))[:, None]

    def count(members: NDArray[np.int64], each: Weights) -> Counts:
        found = np.bincount((first + members).ravel(), each.ravel(), minlength=classes * len(weights))
        return found.reshape(len(weights), classes).astype(np.float64)

    return count(truth, weights * (truth == predicted)), count(predicted, weights), count(truth, weights)


def average(part: Counts, whole: Counts, occurs: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (r,): part / whole of class 1, or its mean over the classes that occur."""
    each: Counts = np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
    if each.shape[1] == 2:
        return each[:, 1]
    return ratio(each.sum(axis=1), occurs.sum(axis=1))
