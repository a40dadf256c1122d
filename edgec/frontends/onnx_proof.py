"""Proof by running: the canonical graph computes what the file computes, on made-up inputs."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.errors import CheckpointError, OutputError, first_line
from edgec.frontends.onnx_inputs import Feed, feeds

# How many inputs are compared; each has sizes of its own where sizes are open.
_RUNS = 4
_FATAL = 4
_EXTERNAL_BYTES = 1024
# Below this an output counts as zero: a difference is absolute there.
_SMALLEST = 1e-3


@dataclass(frozen=True, eq=False)
class Observation:
    """What a file computed.

    Args:
        path: the file.
        feeds: what it was run on.
        outputs: what it gave for each; None for outputs that differ from run to run.
        reason: why there are none, if there are none.
    """

    path: Path
    feeds: tuple[Feed, ...]
    outputs: tuple[tuple[NDArray[Any] | None, ...], ...]
    reason: str = ""


def observe(path: Path, model: ir.Model) -> Observation:
    """Run the file as it is.

    Args:
        path: a checked .onnx file.
        model: the canonical graph of it, which tells what inputs mean.

    Raises:
        CheckpointError: ONNX Runtime says that the graph contradicts itself.
    """
    try:
        session = open_plain(path)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        is_standard = not any(node.domain for node in model.graph.all_nodes())
        if is_standard and type(error).__name__ in {"Fail", "InvalidGraph"}:
            raise CheckpointError(
                f"{path.name} is no valid ONNX model: {first_line(error)}", where=str(path), hint="export it again"
            ) from error
        return Observation(path, (), (), first_line(error))
    inputs = [(value.name, value.type, value.shape) for value in session.get_inputs()]
    taken: list[Feed] = []
    seen: list[tuple[NDArray[Any] | None, ...]] = []
    reason = ""
    try:
        for feed in feeds(inputs, model):
            outputs, failure = _attempt(session, feed)
            reason = reason or failure
            if not failure:
                taken.append(feed)
                seen.append(outputs)
            if len(taken) == _RUNS:
                break
    except ValueError as error:
        reason = str(error)
    return Observation(path, tuple(taken), tuple(seen), "" if taken else reason)


def distance(model: ir.Model, observation: Observation, tolerance: float, *, integers: bool = True) -> float:
    """Run a graph on the same inputs and return its largest distance, relative to the largest number of the output.

    Args:
        model: the graph; its inputs may be wider than the file's.
        observation: what the file computed.
        tolerance: what is allowed, relative to the largest number of the output.
        integers: compare outputs that are not floats too, which must be equal.

    Raises:
        CheckpointError: an output is farther away than its tolerance, or the graph does not run.
        OutputError: there is no room for a copy of the graph.
    """
    largest = 0.0
    if not observation.feeds:
        return largest
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_copy(model, path)
        try:
            session = open_plain(path)
            given = [session.run(None, _fit(feed, model)) for feed in observation.feeds]
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise CheckpointError(
                f"the graph in canonical form does not run: {first_line(error)}",
                where=str(observation.path),
                hint="ONNX Runtime must know its operators at the canonical opset; export the model without that one",
            ) from error
    for wanted, got in zip(observation.outputs, given, strict=True):
        for output, one, other in zip(model.graph.outputs, wanted, got, strict=True):
            if one is None or not (integers or _is_float(one)):
                continue
            apart = relative_distance(one, np.asarray(other))
            if apart > (tolerance if _is_float(one) else 0):
                raise CheckpointError(
                    f"output '{output.name}' of the graph in canonical form is {apart:.2g} away from the file's, "
                    f"relative to its largest number; {tolerance:.2g} is allowed",
                    where=str(observation.path),
                    hint="export the model for the canonical opset, so that nothing has to be converted",
                )
            largest = max(largest, apart)
    return largest


def save_copy(model: ir.Model, path: Path) -> None:
    """Write a graph that is run once, its weights beside it.

    Raises:
        OutputError: there is no room for it.
    """
    try:
        ir.save(model, path, external_data="weights", size_threshold_bytes=_EXTERNAL_BYTES)
    except OSError as error:
        raise OutputError(
            f"a copy of the model, to compare its outputs, cannot be written: {error.strerror or error}",
            where=str(path.parent),
            hint="make room there, or set TMPDIR to another directory",
        ) from error


def open_plain(path: Path) -> ort.InferenceSession:
    """Open a graph so that operators run as they are written."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _attempt(session: ort.InferenceSession, feed: Feed) -> tuple[tuple[NDArray[Any] | None, ...], str]:
    """Run twice, to know what depends on chance; say why where that tells nothing."""
    try:
        once, again = session.run(None, feed), session.run(None, feed)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no base class of their own
        return (), first_line(error)
    if not any(_has_numbers(np.asarray(output)) for output in once):
        return (), "the outputs hold nothing but NaN and infinities"
    pairs = [(np.asarray(one), np.asarray(other)) for one, other in zip(once, again, strict=True)]
    return tuple(one if relative_distance(one, other) == 0 else None for one, other in pairs), ""


def _fit(feed: Feed, model: ir.Model) -> Feed:
    wide = {value.name for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT}
    return {name: array.astype(np.float32) if name in wide else array for name, array in feed.items()}


def relative_distance(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the largest difference relative to the largest number; infinite where shapes or infinities differ."""
    if wanted.shape != got.shape:
        return np.inf
    if not _is_float(wanted):
        return 0.0 if np.array_equal(wanted, got) else np.inf
    one, other = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    gap = float(np.abs(one[finite] - other[finite]).max())
    return gap / max(float(np.abs(one[finite]).max()), _SMALLEST) if np.isfinite(gap) else np.inf


def _has_numbers(array: NDArray[Any]) -> bool:
    return not _is_float(array) or bool(np.isfinite(array).any())


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
