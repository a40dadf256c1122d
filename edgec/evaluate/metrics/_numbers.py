"""Outputs that are numbers to be predicted, and the numbers that are right."""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.evaluate.metrics import Part

Numbers = NDArray[np.float64]


def predicted_and_right(part: Part) -> tuple[Numbers, Numbers]:
    """Return both as (n, d).

    Raises:
        UsageError: the labels are no numbers, or have another shape.
    """
    labels = part.labels
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biuf":
        raise UsageError("the metric needs numbers as labels")
    values, truth = part.values.reshape(len(part.values), -1), labels.reshape(len(labels), -1)
    if values.shape != truth.shape:
        raise UsageError(f"the labels have shape {labels.shape}, the output {part.values.shape}: they do not fit")
    if not np.isfinite(truth).all():
        raise UsageError("a label is not finite")
    return values.astype(np.float64), truth.astype(np.float64)
