"""Nodes in the bodies of If, Loop and Scan, and what would decide an If for good."""

from collections.abc import Iterator

import onnx_ir as ir

from edgec.graph.rewrite import array_of

_SIZES = frozenset({"Shape", "Size"})


def inner_nodes(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield each node in the bodies of a graph's own nodes, however deep, with the node of the graph that holds it."""
    for node in graph:
        for body in _bodies(node):
            yield from ((inner, node) for inner in body.all_nodes())


def deciding_option(node: ir.Node) -> str | None:
    """Return the options that decide an If for good, such as `--fix rate=16000`; None where none of them does."""
    if node.op_type != "If":
        return None
    fixed: dict[str, str] = {}
    seen: set[ir.Value] = set()
    todo: list[tuple[ir.Value | None, str]] = [(node.inputs[0], "N")]
    by_size = False
    while todo:
        value, number = todo.pop()
        if value is None or value in seen or value.is_initializer():
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None:
            if value.shape is None or value.shape.is_dynamic():
                return None
            fixed[str(value.name)] = number
        elif producer.op_type in _SIZES:
            by_size = True
        elif any(_bodies(producer)):
            return None
        else:
            number = _compared_with(producer) or number
            todo += [(each, number) for each in producer.inputs]
    if fixed:
        return " ".join(f"--fix {name}={number}" for name, number in sorted(fixed.items()))
    return "--input with all sizes" if by_size else None


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _compared_with(node: ir.Node) -> str | None:
    """Return the constant that a node compares something with."""
    constants = [value for value in node.inputs if value is not None and value.is_initializer()]
    if node.op_type != "Equal" or len(constants) != 1 or constants[0].const_value is None:
        return None
    array = array_of(constants[0])
    return f"{array.item():g}" if array.size == 1 else None
