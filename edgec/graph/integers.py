"""The integers of a quantized network: int8 weights behind DequantizeLinear, and what rounds activations."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.rewrite import array_of, constant, sweep, users


def flat(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return a weight as algorithms take it, (outputs, everything else), contiguous."""
    return np.ascontiguousarray(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1))


def weight_nodes(graph: ir.Graph) -> Iterator[tuple[str, ir.Node]]:
    """Yield (name, DequantizeLinear) of each quantized weight, biases left out."""
    for node in graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.is_initializer() and codes.dtype != ir.DataType.INT32:
            yield str(codes.name).removesuffix(".codes"), node


def network_codes(graph: ir.Graph) -> Iterator[tuple[str, NDArray[np.int8], NDArray[np.float32]]]:
    """Yield (name, codes (outputs, everything else), scales (outputs,)) of each quantized weight, one in memory."""
    for name, node in weight_nodes(graph):
        codes, scales = (array_of(value) for value in node.inputs[:2] if value is not None)
        yield name, flat(codes, node.attributes.get_int("axis", 1)), scales


def grids_of(graph: ir.Graph) -> dict[str, tuple[float, int]]:
    """Return (scale, zero point) of each rounded value by its name; signed integers are counted from -128 as from 0."""
    found = {}
    for node in graph:
        if node.op_type == "QuantizeLinear" and node.name and node.inputs[2] is not None:
            scale, zero = (array_of(value) for value in node.inputs[1:3] if value is not None)
            moved = int(zero) + (128 if zero.dtype == np.int8 else 0)
            found[node.name.removesuffix(".quantize")] = (float(scale), moved)
    return found


def without_rounding(graph: ir.Graph) -> None:
    """Take out what rounds activations: their readers read the floats, clipped where the integers end."""
    for node in list(graph):
        codes = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        if codes is not None and codes.op_type == "QuantizeLinear":
            node.outputs[0].replace_all_uses_with(clipped(graph, codes))
    sweep(graph)


def clipped(graph: ir.Graph, quantize: ir.Node) -> ir.Value:
    """Return what a QuantizeLinear reads, clipped to what its integers can say."""
    name = f"{quantize.name}.clip"
    value, scale, zero = quantize.inputs
    assert value is not None
    if made := [user for user in users(value) if user.name == name]:  # by an earlier call
        return made[0].outputs[0]
    assert scale is not None
    assert zero is not None
    step, point = float(array_of(scale)), array_of(zero)
    limits = np.iinfo(point.dtype)
    ends = [np.array((end - int(point)) * step, np.float32) for end in (limits.min, limits.max)]
    bounds = [constant(graph, f"{name}.{which}", end) for which, end in zip(("low", "high"), ends, strict=True)]
    clip = ir.node("Clip", [value, *bounds], name=name)
    clip.outputs[0].name, clip.outputs[0].type, clip.outputs[0].shape = name, value.type, value.shape
    graph.insert_after(quantize, clip)
    return clip.outputs[0]
