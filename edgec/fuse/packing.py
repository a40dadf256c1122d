"""What rules that join products of one input share: one wide product, and a Split of what it gives.

It is worth it where weights stream from memory and little is computed with each: one row, or a few. With many rows the
parts have to be copied out of what is one matrix, and a layer takes 1 to 4 % longer; but not where integer weights are
multiplied with float rows, with which joined Q, K and V are never slower (`bench/fusions.py`).
"""

import re
from itertools import takewhile
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.rule import Near, is_constant
from edgec.fuse.terms import maker
from edgec.graph.rewrite import array_of, constant, lazy, users
from edgec.graph.tags import WEIGHTS

FEW_ROWS = 4
"""Rows up to which joining is worth it for every product."""

_PRODUCTS = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat")
_OF_INPUT = (2, 4)  # where MatMulIntegerToFloat takes the scale and the zero point of what it multiplies
_SEPARATORS = re.compile(r"([./])")


def join_siblings(
    model: ir.Model,
    near: Near,
    reader: str,
    through: tuple[str, ...],
    *,
    inputs: int | None = None,
    whatever_rows: tuple[str, ...] = (),
) -> list[str]:
    """Join the products that each operator of a kind reads, and return the names of the wide ones.

    Args:
        model: changed in place.
        near: told of siblings that stay apart.
        reader: the standard operator.
        through: operators that may stand between it and the products.
        inputs: how many of its inputs count; None for all.
        whatever_rows: products that are joined however many rows they multiply.
    """
    made = []
    for graph in model.graphs():
        for node in [node for node in graph if maker(node.outputs[0], reader) is not None]:
            products = _siblings([_product_before(value, through) for value in node.inputs[:inputs]])
            reason = _refusal(products, whatever_rows) if products else None
            if reason:
                near(node, reason)
            elif products:
                made.append(str(_join(products).name))
    return made


def _product_before(value: ir.Value | None, through: tuple[str, ...]) -> ir.Node | None:
    """Return the product with constant weights that a value is made of, with only these operators between them."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in through:
        computed = [source for source in node.inputs if source is not None and not is_constant(source)]
        if not computed:
            return None
        node = computed[-1 if node.op_type == "Concat" else 0].producer()  # what stands in front is the past
    if node is None or node.op_type not in _PRODUCTS:
        return None
    return node if all(source is None or is_constant(source) for source in node.inputs[1:]) else None


def _siblings(products: list[ir.Node | None]) -> list[ir.Node]:
    """Return those, two or more, that read one input and are of one kind; nothing if there are none."""
    known = list(dict.fromkeys(node for node in products if node is not None))
    groups = [[other for other in known if _alike(node) == _alike(other)] for node in known]
    largest: list[ir.Node] = max(groups, key=len, default=[])
    return largest if len(largest) > 1 else []


def _refusal(nodes: list[ir.Node], whatever_rows: tuple[str, ...]) -> str | None:
    """Say why siblings stay apart; None if they are to be joined."""
    first = nodes[0]
    for node in nodes:
        weight = node.inputs[1]
        assert weight is not None
        if len(weight.uses()) > 1:
            return f"the weight {weight.name} has other uses"
        if first.op_type == "MatMul" and any(user.op_type == "Add" for user in users(node.outputs[0])):
            return "biases are added behind the products"
        if first.op_type == "MatMul" and (weight.shape is None or len(weight.shape) != 2):
            return f"the weight {weight.name} is not a matrix"
    if first.op_type in whatever_rows or _generates(first.graph):
        return None
    rows = _rows(first)
    if rows is None:
        return "how many rows are multiplied is not known: with more than a few, one product is slower"
    return f"{rows} rows are multiplied: one product is slower" if rows > FEW_ROWS else None


def _join(nodes: list[ir.Node]) -> ir.Node:
    """Replace siblings by one wide product and a Split, and return the product."""
    graph = nodes[0].graph
    assert isinstance(graph, ir.Graph)
    order = {node: at for at, node in enumerate(graph)}
    first = min(nodes, key=lambda node: order[node])
    axis = 0 if first.op_type == "MatMulNBits" else -1
    name = _joined_name([str(node.name) for node in nodes])
    inputs: list[ir.Value | None] = [first.inputs[0]]
    for index, value in enumerate(first.inputs[1:], start=1):
        pieces = [node.inputs[index] for node in nodes]
        of_input = first.op_type == "MatMulIntegerToFloat" and index in _OF_INPUT
        inputs.append(value if of_input or value is None else _joined(graph, f"{name}.{index}", pieces, axis))
    widths = [_width(node) for node in nodes]
    attributes: dict[str, Any] = dict(first.attributes)
    if "N" in attributes:
        attributes["N"] = ir.AttrInt64("N", sum(widths))
    wide = ir.Node(first.domain, first.op_type, inputs, attributes.values(), name=name)
    wide.outputs[0].name, wide.outputs[0].type = name, first.outputs[0].type
    split_at = constant(graph, f"split.{'.'.join(map(str, widths))}", np.array(widths, np.int64))
    split = ir.node("Split", [wide.outputs[0], split_at], {"axis": -1}, num_outputs=len(nodes), name=f"{name}.split")
    for node in (wide, split):
        node.metadata_props.update(first.metadata_props)
        graph.insert_before(first, node)
    for node, output in zip(nodes, split.outputs, strict=True):
        old = node.outputs[0]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    return wide


def _alike(node: ir.Node) -> tuple[Any, ...]:
    """Return what products must share to be joined."""
    attributes = tuple((key, attribute.value) for key, attribute in sorted(node.attributes.items()) if key != "N")
    return (node.inputs[0], node.graph, node.op_type, attributes, tuple(value is not None for value in node.inputs))


def _generates(graph: ir.Graph | ir.Function | None) -> bool:
    """Return whether attention has a past: then most runs are of one token."""
    attentions = (node for node in graph or () if node.op_type == "Attention")
    return any(len(node.inputs) > 4 and node.inputs[4] is not None for node in attentions)


def _rows(node: ir.Node) -> int | None:
    """Return how many rows a product multiplies; None if that is not known."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    sizes = None if shape is None else [size for size in shape[:-1] if isinstance(size, int)]
    return None if sizes is None or shape is None or len(sizes) < len(shape) - 1 else int(np.prod(sizes))


def _width(node: ir.Node) -> int:
    if node.op_type == "MatMulNBits":
        return node.attributes["N"].as_int()
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    return int(node.inputs[1].shape[1])  # type: ignore[arg-type]


def _joined(graph: ir.Graph, name: str, pieces: list[Any], axis: int) -> ir.Value:
    shapes = [tuple(int(size) for size in piece.shape) for piece in pieces]
    shape = list(shapes[0])
    shape[axis] = sum(other[axis] for other in shapes)

    def load() -> NDArray[Any]:
        return np.concatenate([array_of(piece) for piece in pieces], axis=axis)

    joined = lazy(graph, name, pieces[0].dtype, tuple(shape), load)
    if all(WEIGHTS in piece.metadata_props for piece in pieces):
        joined.metadata_props[WEIGHTS] = " ".join(piece.metadata_props[WEIGHTS] for piece in pieces)
    return joined


def _joined_name(names: list[str]) -> str:
    """Return one name for what had several: what differs, joined by +, in what they share."""
    parts = [_SEPARATORS.split(name) for name in names]
    head = _common(parts)
    tail = _common([part[len(head) :][::-1] for part in parts])[::-1]
    middle = ["".join(part[len(head) : len(part) - len(tail)]) for part in parts]
    return "".join(head) + "+".join(middle) + "".join(tail)


def _common(parts: list[list[str]]) -> list[str]:
    """Return what all begin with."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))]
