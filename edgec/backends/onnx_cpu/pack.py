"""Join matmuls that read the same input (Q, K, V; gate, up) into one, so that the weights stream in one sweep."""

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.backends.onnx_cpu.matmul import bias_add
from edgec.graph.rewrite import array_of, constant, lazy
from edgec.graph.tags import BLOCK, WEIGHTS


def pack_siblings(graph: ir.Graph) -> None:
    """Replace matmuls of the same input, block and scheme by one wide matmul and a Split."""
    families: dict[tuple[Any, ...], list[ir.Node]] = defaultdict(list)
    for node in graph:
        if (key := _key(node)) is not None:
            families[key].append(node)
    for nodes in families.values():
        if len(nodes) > 1:
            _pack(graph, nodes)


def _key(node: ir.Node) -> tuple[Any, ...] | None:
    """Return what matmuls must share to be packed; None where `node` cannot be packed."""
    if node.op_type not in ("MatMulNBits", "MatMulIntegerToFloat", "MatMul"):
        return None
    weights = node.inputs[1:]
    if not all(value is None or value.is_initializer() for value in weights):
        return None
    if bias_add(node) is not None:  # a float MatMul: packing would part it from its bias
        return None
    shared = tuple((k, a.value) for k, a in sorted(node.attributes.items()) if k != "N")
    present = tuple(value is not None for value in weights)
    return (node.inputs[0], node.metadata_props[BLOCK], node.op_type, shared, present)


def _pack(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    first = nodes[0]
    axis = 0 if first.op_type == "MatMulNBits" else -1
    widths = [_width(node) for node in nodes]
    name = ".".join([str(first.name).rpartition(".")[0], "+".join(str(n.name).rpartition(".")[2] for n in nodes)])
    inputs: list[ir.Value | None] = [first.inputs[0]]
    for index, value in enumerate(first.inputs[1:], start=1):
        pieces = [node.inputs[index] for node in nodes]
        shared = all(piece is value for piece in pieces)  # such as the scale of the input
        inputs.append(value if shared else _joined(graph, f"{name}.{index}", pieces, axis))
    attributes: dict[str, Any] = dict(first.attributes)
    if "N" in attributes:
        attributes["N"] = ir.AttrInt64("N", sum(widths))
    wide = ir.Node(first.domain, first.op_type, inputs, attributes.values(), name=name)
    wide.outputs[0].name = name
    wide.outputs[0].type = first.outputs[0].type
    split_at = constant(graph, f"split.{'.'.join(map(str, widths))}", np.array(widths, np.int64))
    split = ir.node("Split", [wide.outputs[0], split_at], {"axis": -1}, num_outputs=len(nodes), name=f"{name}.split")
    for node in (wide, split):
        node.metadata_props[BLOCK] = first.metadata_props[BLOCK]
        graph.insert_before(first, node)
    for node, output in zip(nodes, split.outputs, strict=True):
        output.name, output.type = node.outputs[0].name, node.outputs[0].type
        node.outputs[0].replace_all_uses_with(output)
        graph.remove(node, safe=True)


def _width(node: ir.Node) -> int:
    if node.op_type == "MatMulNBits":
        return node.attributes["N"].as_int()
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    return int(node.inputs[1].shape[1])  # type: ignore[arg-type]


def _joined(graph: ir.Graph, name: str, pieces: list[Any], axis: int) -> ir.Value:
    shapes = [tuple(int(d) for d in piece.shape) for piece in pieces]
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    dtype = pieces[0].dtype

    def load() -> NDArray[Any]:
        return np.concatenate([array_of(piece) for piece in pieces], axis=axis)

    joined = lazy(graph, name, dtype, tuple(shape), load)
    if all(WEIGHTS in piece.metadata_props for piece in pieces):
        joined.metadata_props[WEIGHTS] = " ".join(piece.metadata_props[WEIGHTS] for piece in pieces)
    return joined
