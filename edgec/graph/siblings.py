"""Matmuls that read the same input (Q, K, V; gate, up): backends compute them as one."""

from collections import defaultdict
from typing import Any

import onnx_ir as ir

from edgec.graph.store import shape_of
from edgec.graph.tags import BLOCK


def matmul_siblings(graph: ir.Graph) -> list[list[ir.Node]]:
    """Return the matmuls of a canonical graph that have siblings: same input, same block, weights stored alike."""
    families: dict[Any, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.op_type == "MatMul" and node.inputs[1] is not None:
            families[node.inputs[0], node.metadata_props[BLOCK], _storage(node.inputs[1])].append(node)
    return [family for (_, _, storage), family in families.items() if storage and len(family) > 1]


def matrix_size(node: ir.Node) -> tuple[int, int]:
    """Return (in, out) of a matmul by a weight."""
    value = node.inputs[1]
    assert value is not None
    assert value.shape is not None
    first, second = (int(size) for size in value.shape)  # type: ignore[arg-type]
    return first, second


def _storage(weight: ir.Value) -> Any:
    """Return how a weight is stored, in a form that compares; None for what is no weight of its own."""
    if weight.is_initializer():
        return weight.dtype
    node = weight.producer()
    if node is None or node.op_type not in ("DequantizeLinear", "Cast") or node.inputs[0] is None:
        return None
    stored = node.inputs[0].const_value
    if stored is None:
        return None
    settings = tuple(sorted((name, attribute.value) for name, attribute in node.attributes.items()))
    return node.op_type, stored.dtype, len(node.inputs), len(shape_of(stored)), settings
