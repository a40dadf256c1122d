"""Outputs that are numbers to be predicted, and the numbers that are right."""

import numpy as np
from numpy.typing import NDArray

from edgec.errors import CheckpointError, UsageError
from edgec.evaluate.metrics import Part

Numbers = NDArray[np.float64]


def predicted_and_right(part: Part) -> tuple[Numbers, Numbers]:
    """Return both as (n, d).

    Raises:
        UsageError: the labels are no numbers, or have another shape.
        CheckpointError: an output is infinite.
    """
    labels = part.labels
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biuf":
        raise UsageError(
            "the metric needs numbers as labels", hint="give them in the samples, such as an array `target` in .npz"
        )
    values, truth = part.values.reshape(len(part.values), -1), labels.reshape(len(labels), -1)
    if values.shape != truth.shape:
        raise UsageError(
            f"the labels have shape {labels.shape}, the output {part.values.shape}: they do not fit",
            hint="NAME@OUTPUT looks at another output",
        )
    for numbers, what, kind in ((truth, "a label is", UsageError), (values, "an output is", CheckpointError)):
        odd = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
        if len(odd):
            raise kind(
                f"{what} not finite: there is no error to measure",
                where=part.places[odd[0]] if part.places else None,
                hint="leave this sample out",
            )
    return values.astype(np.float64), truth.astype(np.float64)
