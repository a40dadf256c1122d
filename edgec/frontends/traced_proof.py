"""Proof by running: the graph gives what torch gave."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import CheckpointError, first_line
from edgec.frontends.onnx_proof import open_plain, relative_distance, save_copy
from edgec.frontends.trace_inputs import Feed

# How far outputs may be from torch's, relative to the largest number of the output.
TOLERANCE = 1e-4


def prove(model: ir.Model, feeds: Sequence[Feed], outputs: Sequence[Sequence[NDArray[Any]]]) -> float:
    """Run a graph in ONNX Runtime and return how far it is from torch, relative to the largest number of an output.

    Args:
        model: the graph.
        feeds: inputs by name.
        outputs: what torch gave for each, in the graph's order.

    Raises:
        CheckpointError: an output is farther than `TOLERANCE` from torch's, or the graph does not run.
        OutputError: there is no room for a copy of the graph.
    """
    names = [value.name or "" for value in model.graph.outputs]
    farthest = 0.0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_copy(model, path)
        for given, wanted in zip(_run(path, feeds), outputs, strict=True):
            for name, one, other in zip(names, given, wanted, strict=True):
                apart = relative_distance(other, one) if one.dtype == other.dtype else float("inf")
                if not apart <= TOLERANCE:
                    raise CheckpointError(
                        f"output '{name}' of the graph is {apart:.2g} away from torch's, relative to its largest "
                        f"number; {TOLERANCE:.2g} is allowed",
                        hint="export the model to ONNX yourself and give the .onnx file",
                    )
                farthest = max(farthest, apart)
    return farthest


def _run(path: Path, feeds: Sequence[Feed]) -> list[list[NDArray[Any]]]:
    try:
        session = open_plain(path)
        return [[np.asarray(array) for array in session.run(None, feed)] for feed in feeds]
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise CheckpointError(
            f"the graph that torch wrote does not run: {first_line(error)}",
            hint="export the model to ONNX yourself and give the .onnx file",
        ) from error
