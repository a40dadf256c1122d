"""The pass that rounds what flows into the layers' matmuls to int8, with scales that calibration found.

A value that an int8 weight multiplies goes through `QuantizeLinear -> DequantizeLinear` with one scale for the whole
tensor, around 0: matmuls that read the same value (Q, K, V; gate, up) share it, and every backend rounds to the same
integers. Other matmuls of the value, and the output matrix, go on reading the float.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.rewrite import array_of, constant, sweep
from edgec.graph.tags import BLOCK
from edgec.graph.weights import weight_nodes

Ranges = Mapping[str, tuple[float, float]]

_LOW, _HIGH = -128, 127


def multiplied(model: ir.Model, matrices: Collection[str]) -> dict[str, list[ir.Node]]:
    """Return the matmuls with these names, by the name of the value that they read."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type == "MatMul" and node.name in matrices:
            assert node.inputs[0] is not None
            found.setdefault(str(node.inputs[0].name), []).append(node)
    return found


def quantize_activations(model: ir.Model, matrices: Collection[str], ranges: Ranges) -> ir.Model:
    """Return a copy of a canonical graph in which some matmuls read int8; it shares its weights with `model`.

    Args:
        model: not changed.
        matrices: the names of the matmuls, such as `layers.3.mlp.down`.
        ranges: by the name of each value that they read (see `multiplied`), the lowest and the highest number to keep;
            beyond, they are clipped.

    Raises:
        KeyError: a value has no range.
        ValueError: a range is not finite.
    """
    quantized = model.clone()
    graph = quantized.graph
    for name, readers in multiplied(quantized, matrices).items():
        scale = constant(graph, f"{name}.scale", np.array(scale_of(*ranges[name]), np.float32))
        zero = constant(graph, "int8.zero", np.array(0, np.int8))
        assert readers[0].inputs[0] is not None
        put_rounding(graph, name, readers[0].inputs[0], readers, scale, zero)
    return quantized


def put_rounding(
    graph: ir.Graph,
    name: str,
    value: ir.Value,
    readers: Sequence[ir.Node],
    scale: ir.Value,
    zero: ir.Value,
    *,
    axis: int | None = None,
) -> None:
    """Write `QuantizeLinear -> DequantizeLinear` between a value and nodes that read it, the first of them in front.

    Args:
        graph: changed in place.
        name: of the scale, in reports.
        value: what is rounded.
        readers: in the order of the graph.
        scale: a number, or a vector along `axis`.
        zero: of the type of the integers.
        axis: of the value; None for one scale.
    """
    attributes = {} if axis is None else {"axis": axis}
    quantize = ir.node("QuantizeLinear", [value, scale, zero], attributes, name=f"{name}.quantize")
    dequantize = ir.node("DequantizeLinear", [*quantize.outputs, scale, zero], attributes, name=f"{name}.dequantize")
    for node, dtype in ((quantize, zero.dtype), (dequantize, ir.DataType.FLOAT)):
        assert dtype is not None
        node.outputs[0].name, node.outputs[0].shape = node.name, value.shape
        node.outputs[0].type = ir.TensorType(dtype)
        node.metadata_props[BLOCK] = readers[0].metadata_props[BLOCK]
        graph.insert_before(readers[0], node)
    for reader in readers:
        reader.replace_input_with(list(reader.inputs).index(value), dequantize.outputs[0])


def scale_of(low: float, high: float) -> float:
    """Return the scale with which -128 to 127 just hold a range around 0: a positive float16 number, 1 for nothing.

    Raises:
        ValueError: the range is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"a range from {low} to {high}")
    scale = max(high / _HIGH, low / _LOW)
    limits = np.finfo(np.float16)
    return float(np.float16(np.clip(scale, limits.smallest_subnormal, limits.max))) if scale > 0 else 1.0


def quantizers(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the `QuantizeLinear` of each activation, key and value."""
    return (node for node in graph if node.op_type == "QuantizeLinear")


def activation_scales(graph: ir.Graph) -> dict[str, tuple[float, ...]]:
    """Return the scale of each value that is rounded to integers, by its name: one, or those along its last axis."""
    found = {}
    for node in quantizers(graph):
        assert node.inputs[1] is not None
        found[str(node.name).removesuffix(".quantize")] = scale_numbers(array_of(node.inputs[1]))
    return found


def scale_numbers(scales: NDArray[Any]) -> tuple[float, ...]:
    """Return scales as numbers that compare."""
    return tuple(map(float, scales.reshape(-1)))


def leave_float(graph: ir.Graph) -> None:
    """Take the rounding of activations and of the cache out of a graph; weights stay what they are."""
    weights = set(weight_nodes(graph))
    for node in list(graph):
        value = node.inputs[0] if node.inputs else None
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node not in weights and value is not None:
            node.outputs[0].replace_all_uses_with(value)
    sweep(graph)
