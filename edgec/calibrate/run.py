"""Run a network's graph in ONNX Runtime, batch by batch, and have any of its values."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.errors import CheckpointError, UsageError, first_line

_FATAL = 4  # errors are told by exceptions alone
_NODE = re.compile(r"node\. Name:'([^']*)'|Node \(([^)]*)\) Op")
# In front of the innermost reason: a code, the nodes around it, what kind of error it is, and where in ONNX Runtime.
_BEFORE_REASON = re.compile(r"^.*(\[ONNXRuntimeError\] : \d+ : \w+ :|Status Message:|InferenceError\]|was false\.)\s*")
_SOME_SIZE = 576  # in an example
# Smaller ones may be shapes, which ONNX Runtime must know when it loads a graph.
_LARGE_BYTES = 4096
_SHARED = {ir.DataType[name] for name in ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64")}


def run(
    model: ir.Model, batches: Iterable[Batch], outputs: Sequence[str] | None = None, *, threads: int = 0
) -> Iterator[Batch]:
    """Yield outputs of a network for batch after batch, computed in float.

    Rounded activations are multiplied as the numbers that they stand for: a quantized graph gives what it means.

    Args:
        model: not changed.
        batches: taken one at a time.
        outputs: inputs, and outputs of nodes that are not in subgraphs; the outputs of the model by default.
        threads: of ONNX Runtime; 0 takes all cores.

    Raises:
        UsageError: a batch is not what the model takes, or the model leaves sizes open and does not run with those.
        CheckpointError: the model cannot be run.
        ValueError: there is no such value.
    """
    wanted = [str(value.name) for value in model.graph.outputs] if outputs is None else outputs
    call = open_model(model, wanted, threads)
    for batch in batches:
        check_batch(model, batch)
        yield call(batch)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A graph in ONNX Runtime: called with a batch, it returns the outputs that were asked for.

    Args:
        session: the graph.
        outputs: their names.
        weights: arrays that the session may read where they are.
        where: the graph's name, for errors.
        open_input: an input with sizes that the model leaves open; None where there is none.
    """

    session: ort.InferenceSession
    outputs: list[str]
    weights: Mapping[str, NDArray[Any]]
    where: str | None
    open_input: ir.Value | None

    def __call__(self, batch: Batch) -> Batch:
        """Compute the outputs.

        Raises:
            UsageError: the model leaves sizes open, and does not run with those of this batch.
            CheckpointError: the model cannot be run.
        """
        try:
            return dict(zip(self.outputs, self.session.run(self.outputs, batch), strict=True))
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            node, reason = _innermost(error)
            if self.open_input is None:
                raise CheckpointError(
                    f"ONNX Runtime cannot run the model: {reason}", where=node or self.where, hint="export it again"
                ) from error
            given = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
            raise UsageError(
                f"the model does not run on these samples ({given}): {reason}",
                where=node or self.where,
                hint=f"check them, or state sizes with which it runs, such as --input {_example(self.open_input)}",
            ) from error


def open_model(model: ir.Model, outputs: Sequence[str], threads: int = 0) -> Loaded:
    """Load a graph to compute some of its values; see `run`. ONNX Runtime makes the only copy of its large weights.

    Raises:
        CheckpointError: ONNX Runtime refuses the model.
        ValueError: there is no such value.
    """
    skeleton = model.clone()
    skeleton.graph.outputs[:] = find_values(skeleton.graph, outputs)
    weights = _take_weights(skeleton.graph)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # give the memory back after each run
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    try:
        proto = ir.to_proto(skeleton).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        node, reason = _innermost(error)
        raise CheckpointError(
            f"ONNX Runtime cannot load the model: {reason}", where=node or model.graph.name, hint="export it again"
        ) from error
    opened = [value for value in inputs_of(model) if value.shape is not None and value.shape.is_dynamic()]
    return Loaded(session, list(outputs), weights, model.graph.name, opened[0] if opened else None)


def _innermost(error: Exception) -> tuple[str | None, str]:
    """Return the node that failed, where ONNX Runtime says so, and why, without the nodes around it."""
    text = first_line(error)
    nodes = [ran or loaded for ran, loaded in _NODE.findall(text)]
    return (nodes[-1] if nodes else None), _BEFORE_REASON.sub("", text)


def _example(value: ir.Value) -> str:
    """Return an input as `--input` takes it, with numbers for its open sizes."""
    assert value.shape is not None
    assert value.dtype is not None
    first, *others = value.shape
    sizes = [first if isinstance(first, int) else 1 if others else _SOME_SIZE]
    sizes += [size if isinstance(size, int) else _SOME_SIZE for size in others]
    return f"{value.name}:{value.dtype.numpy().name}[{','.join(map(str, sizes))}]"


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """Return what a model must be given: its inputs, but for those that have a default."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def check_batch(model: ir.Model, batch: Batch) -> None:
    """Make sure that a batch is what a model takes: names, types and shapes, in which a name stands for one size.

    Raises:
        UsageError: it is not.
    """
    inputs, sizes = inputs_of(model), dict[str, int]()
    if batch.keys() == {value.name for value in inputs} and all(_fits(v, batch[str(v.name)], sizes) for v in inputs):
        return
    given = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in batch.items())
    takes = ", ".join(f"{value.name} {value.dtype and value.dtype.numpy()} {value.shape}" for value in inputs)
    raise UsageError(f"the samples are not what the model takes: {given or 'none'}", hint=f"it takes {takes}")


def _fits(value: ir.Value, array: NDArray[Any], sizes: dict[str, int]) -> bool:
    """Compare with the type and the shape of an input; `sizes` of names seen so far grow."""
    if value.dtype is not None and array.dtype != value.dtype.numpy():
        return False
    if value.shape is None:
        return True
    wanted = [size if isinstance(size, int) else size.value for size in value.shape]
    return len(wanted) == array.ndim and all(
        want is None or given == (want if isinstance(want, int) else sizes.setdefault(want, given))
        for want, given in zip(wanted, array.shape, strict=True)
    )


def find_values(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    """Return inputs and outputs of a graph, some of which may be constants, and outputs of its nodes by their names.

    Raises:
        ValueError: there is no such value; those in subgraphs are out of reach.
    """
    computed = (value for node in graph for value in node.outputs)
    made = {value.name: value for value in (*graph.inputs, *graph.outputs, *computed)}
    if missing := [name for name in names if name not in made]:
        raise ValueError(f"the main graph does not compute {', '.join(missing)}")
    return [made[name] for name in names]


def _take_weights(graph: ir.Graph) -> dict[str, NDArray[Any]]:
    """Take the large initializers out of a graph, and return them."""
    taken = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _LARGE_BYTES and tensor.dtype in _SHARED:
            taken[name] = np.ascontiguousarray(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                "given to the session", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(taken[name].shape), name=name
            )
        elif isinstance(tensor, ir.ExternalTensor):  # ONNX Runtime would not find the file: the graph comes from memory
            value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=name)
    return taken
