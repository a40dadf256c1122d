"""Give every float of a network its type: float16, or float32 where `network_floats` wants it, with casts between them.

Inputs and outputs stay float32. Constants stay float32 in the file and are cast in the graph, which compilers fold, so
that the float32 twin of the graph is exact; scales and scalars that are float16 numbers anyway are stored as such.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.tensorrt.network_floats import (
    FLOAT,
    HALF,
    LARGEST,
    float32_nodes,
    floats,
    is_exact,
    is_stored,
    is_typed,
    reads_float,
)
from edgec.backends.tensorrt.network_operators import HIDDEN
from edgec.graph.rewrite import array_of, constant, sweep

Reader = tuple[ir.Node, int]


def narrow(graph: ir.Graph) -> None:
    """Make the floats of a graph float16 where they may be; values have types before and after, and no shapes after."""
    wide = float32_nodes(graph)
    huge = _huge_values(graph, wide)
    types = {value: FLOAT for value in (*graph.inputs, *graph.initializers.values()) if value.dtype == FLOAT}
    for node in graph:
        types |= dict.fromkeys(floats(node.outputs), FLOAT if node in wide else HALF)
    for node in list(graph):
        if node.op_type == "DequantizeLinear" or is_stored(node):
            types |= _types_of_widened(graph, node, wide)
    first = graph[0]
    for value, kind in list(types.items()):
        _cast_readers(graph, value, kind, wide, first, is_huge=value in huge)
    for node in graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _type_scale(graph, node)
    outputs = set(graph.outputs)
    for value in (value for node in graph for value in node.outputs if value not in outputs):
        value.shape = None
    sweep(graph)


def _huge_values(graph: ir.Graph, wide: set[ir.Node]) -> set[ir.Value]:
    """Return the constants beyond float16, such as what hides numbers from a maximum, and what is made of them."""
    found = {value for value in floats(graph.initializers.values()) if _is_huge(array_of(value))}
    for node in graph:
        filling = node.attributes.get_tensor("value") if node.op_type == "ConstantOfShape" else None
        is_filled = filling is not None and _is_huge(filling.numpy())
        if is_filled or (node in wide and any(value in found for value in floats(node.inputs))):
            found.update(floats(node.outputs))
    return found


def _is_huge(array: NDArray[Any]) -> bool:
    return bool(np.abs(array).max(initial=0) > LARGEST)


def _readers(graph: ir.Graph, value: ir.Value, wide: set[ir.Node]) -> list[tuple[Reader, ir.DataType | None]]:
    """Return who reads a value, and the type that each wants; None: whatever it is."""
    found: list[tuple[Reader, ir.DataType | None]] = []
    for use in value.uses():
        node, index = use.node, use.idx
        kind: ir.DataType | None = (
            FLOAT if node in wide or node.graph is not graph or reads_float(node, index) else HALF
        )
        if node.graph is graph and not is_typed(node):
            is_quantizer = node.op_type == "QuantizeLinear" and index == 0
            kind = FLOAT if is_quantizer and not is_exact(node.inputs[1]) else None  # type: ignore[arg-type]
        found.append(((node, index), kind))
    return found


def _types_of_widened(graph: ir.Graph, node: ir.Node, wide: set[ir.Node]) -> dict[ir.Value, ir.DataType]:
    """Return the type of what a node widens; who reads the other type gets a copy of the node, for a cast hides it.

    It is float32 where all who read it want that, or where a scale is no float16 number.
    """
    value = node.outputs[0]
    if node.op_type == "DequantizeLinear" and not is_exact(node.inputs[1]):  # type: ignore[arg-type]
        return {value: FLOAT}
    readers = _readers(graph, value, wide)
    wants_float = [reader for reader, kind in readers if kind == FLOAT]
    if wants_float and not any(kind == HALF for _, kind in readers):
        return {value: FLOAT}
    types = {value: HALF}
    if wants_float:
        copy = ir.node(node.op_type, node.inputs, dict(node.attributes), name=f"{node.name}.wide")
        copy.outputs[0].name, copy.outputs[0].dtype = copy.name, FLOAT
        graph.insert_after(node, copy)
        for reader, index in wants_float:
            reader.replace_input_with(index, copy.outputs[0])
        types[copy.outputs[0]] = FLOAT
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", HALF)
    return types


def _cast_readers(
    graph: ir.Graph, value: ir.Value, kind: ir.DataType, wide: set[ir.Node], first: ir.Node, *, is_huge: bool
) -> None:
    """Put a cast between a value and those who read it in the other type; outputs of the graph are float32."""
    other = HALF if kind == FLOAT else FLOAT
    readers = [reader for reader, wanted in _readers(graph, value, wide) if wanted == other]
    is_output = value in graph.outputs and other == FLOAT
    value.type = ir.TensorType(kind)
    if not readers and not is_output:
        return
    if other == HALF and value.is_initializer() and array_of(value).size == 1 and is_exact(value):
        cast = constant(graph, f"{value.name}.half", array_of(value).astype(np.float16))
    else:
        cast = _cast(graph, value, other, first, is_huge=is_huge and other == HALF)
    for node, index in readers:
        node.replace_input_with(index, cast)
    if is_output:
        name, cast.shape = value.name, value.shape
        value.name, cast.name = f"{name}.half", name
        graph.outputs[:] = [cast if output is value else output for output in graph.outputs]


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, first: ir.Node, *, is_huge: bool) -> ir.Value:
    """Write a cast behind what gives a value, or in front of all nodes; of what is huge, what hides is left."""
    nodes = [ir.node("Cast", [value], {"to": to}, name=f"{value.name}.{'narrow' if to == HALF else 'widen'}")]
    if is_huge:
        limits = [constant(graph, f"scalar.{limit:.9g}", np.array(limit, np.float32)) for limit in (HIDDEN, -HIDDEN)]
        nodes.insert(0, ir.node("Clip", [value, *limits], name=f"{value.name}.clip"))
        nodes[1].replace_input_with(0, nodes[0].outputs[0])
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(FLOAT)
    producer, cast = value.producer(), nodes[-1].outputs[0]
    cast.type = ir.TensorType(to)
    if producer is None:
        graph.insert_before(first, nodes)
    else:
        graph.insert_after(producer, nodes)
    return cast


def _type_scale(graph: ir.Graph, node: ir.Node) -> None:
    """Give rounding a scale of the type that it reads or gives; it must be a constant and not be computed."""
    value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
    scale = node.inputs[1]
    assert value is not None
    assert scale is not None
    if value.dtype == HALF and scale.dtype == FLOAT:
        node.replace_input_with(1, constant(graph, f"{scale.name}.half", array_of(scale).astype(np.float16)))
