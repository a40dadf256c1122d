"""Outputs that score classes, and the classes that are right."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.evaluate.metrics import Part, Setting, Stats

IGNORED = -100
"""A label that counts for nothing, by torch's custom: padding and pieces of words."""


def class_scores(values: NDArray[Any], setting: Setting) -> NDArray[Any]:
    """Return scores (n, ..., classes): of two classes where there is a single score.

    Raises:
        UsageError: there are no scores, a single one and no threshold, or several and a threshold.
    """
    if values.ndim == 4 and values.shape[2:] == (1, 1):  # what pooling of pictures leaves behind
        values = values[..., 0, 0]
    if values.dtype.kind != "f" or not has_scores(values):
        raise UsageError(
            f"the output, {values.dtype} {values.shape}, has no scores of classes",
            hint="name another output, NAME@OUTPUT, or another metric",
        )
    if values.ndim > 1 and values.shape[-1] > 1:
        if setting.threshold is not None:
            raise UsageError(
                f"the output scores {values.shape[-1]} classes: a threshold is for a single score",
                hint="leave it out: the class with the highest score is taken",
            )
        return values
    if setting.threshold is None:
        raise UsageError(
            "the output has a single score for each sample, and no threshold is known",
            hint="state above which score a sample is of class 1: NAME:0.5 for probabilities, NAME:0 for logits",
        )
    single = values.reshape(len(values))
    return np.stack([np.full_like(single, setting.threshold), single], axis=1)


def has_scores(values: NDArray[Any]) -> bool:
    """Return whether the last axis of an output may be that of classes, or each sample has a single score."""
    return values.size == len(values) or (values.ndim > 1 and values.shape[-1] > 1) or values.shape[2:] == (1, 1)


def true_classes(part: Part, scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return the classes that are right, of the shape of the scores but for the last axis.

    Raises:
        UsageError: they have another shape, or one is outside of the classes.
    """
    labels, classes = part.labels, scores.shape[-1]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind != "i":
        raise UsageError(
            "the metric needs the class of each sample as its label",
            hint="give classes as integers; for numbers there are `mae`, `rmse` and `r2`, for texts `wer` and `bleu`",
        )
    if labels.shape != scores.shape[:-1]:
        raise UsageError(
            f"the labels have shape {labels.shape}, the scores {scores.shape}: they do not fit",
            hint=f"labels of shape {scores.shape[:-1]} do; NAME@OUTPUT looks at another output",
        )
    outside = np.argwhere(((labels < 0) | (labels >= classes)) & (labels != IGNORED))
    if len(outside):
        first = tuple(outside[0])
        raise UsageError(
            f"label {labels[first]} is outside of the model's {classes} classes",
            where=part.places[first[0]] if part.places else None,
            hint=f"classes are 0 to {classes - 1}; {IGNORED} is a label that counts for nothing",
        )
    valid = part.valid if labels.ndim > 1 else None
    return labels if valid is None else np.where(valid.reshape(*valid.shape, *[1] * (labels.ndim - 2)), labels, IGNORED)


def hits(part: Part, setting: Setting, k: int) -> Stats:
    """Return (n, 2): labels of each sample that are among the k classes with the highest scores, and its labels.

    Of equal scores those of lower classes count as higher.

    Raises:
        UsageError: labels or scores are not of classes, or there are not more than k.
    """
    scores = class_scores(part.values, setting)
    truth = true_classes(part, scores)
    if scores.shape[-1] <= k:
        raise UsageError(f"all {scores.shape[-1]} classes of the model are among {k}", hint="use `top1`")
    counts = truth != IGNORED
    own = np.take_along_axis(scores, np.where(counts, truth, 0)[..., None], -1)
    classes = np.arange(scores.shape[-1])
    ahead = (scores > own) | ((scores == own) & (classes < truth[..., None]))
    right = counts & (ahead.sum(axis=-1) < k)
    inner = tuple(range(1, truth.ndim))
    return np.stack([right.sum(axis=inner), counts.sum(axis=inner)], axis=1).astype(np.float64)
