"""Find numbers that float16 cannot hold: ONNX Runtime computes some of them in float32, and engines do not."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import PlanError
from edgec.graph.rewrite import constant

EXTREMES = "edgec.extremes"
_HALF = ir.DataType.FLOAT16
_LARGEST = 65504.0
# They move numbers, or make small ones.
HARMLESS = frozenset(
    {"Concat", "DequantizeLinear", "Expand", "Gather", "Reshape", "RotaryEmbedding", "Sigmoid", "Slice", "Softmax"}
    | {"Split", "Tanh", "Transpose", "Unsqueeze", "Where"}
)


def watch(graph: ir.Graph, values: Iterable[ir.Value] | None = None) -> tuple[str, ...]:
    """Add an output with the largest magnitude of each float16 activation, and return their names, in its order.

    Args:
        graph: changed in place.
        values: the activations; None finds them in a decoder's graph.
    """
    watched = list(_activations(graph) if values is None else values)
    if not watched:
        return ()
    axis = constant(graph, "extremes.axis", np.array([0], np.int64))
    largest = []
    for value in watched:
        name = f"{value.name}.extreme"
        magnitude = ir.node("Abs", [value], name=f"{name}.abs")
        peak = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0}, name=f"{name}.max")
        row = ir.node("Unsqueeze", [peak.outputs[0], axis], name=name)
        for node in (magnitude, peak, row):
            node.outputs[0].name = str(node.name)
            graph.append(node)
        largest.append(row.outputs[0])
    joined = ir.node("Concat", largest, {"axis": 0}, name=EXTREMES)
    joined.outputs[0].name = EXTREMES
    joined.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(joined)
    graph.outputs.append(joined.outputs[0])
    return tuple(str(value.name) for value in watched)


def refuse_overflow(names: tuple[str, ...], extremes: NDArray[np.float32], where: str) -> None:
    """Make sure that every watched activation stays in float16's range.

    Raises:
        PlanError: one does not.
    """
    worst = int(np.argmax(extremes))
    if not extremes[worst] <= _LARGEST:
        raise PlanError(
            f"'{names[worst]}' reaches {extremes[worst]:.4g}; engines compute it in float16, which ends at 65504",
            where=where,
            hint="choose the fp32 profile, or another backend of the target",
        )


def _activations(graph: ir.Graph) -> Iterator[ir.Value]:
    half = {value for value in (*graph.inputs, *graph.initializers.values()) if value.dtype == _HALF}
    constant = set(graph.initializers.values())
    for node in list(graph):
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "Cast":
            is_half = node.attributes["to"].as_int() == _HALF
        elif node.op_type == "DequantizeLinear":
            is_half = inputs[1] in half
        else:
            is_half = node.op_type != "Shape" and any(value in half for value in inputs)
        if all(value in constant for value in inputs):
            constant.update(node.outputs)
        if is_half:
            half.update(node.outputs)
            if node.op_type not in HARMLESS and not any(value in constant for value in node.outputs):
                yield from node.outputs[:1]
