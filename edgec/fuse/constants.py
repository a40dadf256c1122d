"""Computed once instead of in every run: operators on constants, shapes that are known, an If whose condition is.

The optimizer of onnxscript evaluates. Weights that are only moved (transposed, reshaped, cast) stay where they are, and
are moved whenever they are read. A result has no more elements than what it is made from, or at most `_LARGEST`.
"""

import sys
from collections.abc import Callable
from math import prod
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.optimizer import FOLDED_FROM_KEY, fold_constants

from edgec.fuse.rule import Near, Phase, Stage, is_constant, lazily, static_shape
from edgec.fuse.surgery import bypass, tidy

TITLE = "constants folded"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"

_LARGEST = 64 * 1024
_WEIGHT = 64  # a float constant of more elements than this is a weight: it keeps its name
_FILLED = 1024  # a ConstantOfShape up to this size is computed, since it is often the shape of something else
_BOUNDED = ("NonZero", "Compress", "Unique")
_MOVED = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")
_KEPT = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")


def apply(model: ir.Model, near: Near) -> list[str]:
    """Fold what depends on constants alone, and return the names of the nodes that are gone."""
    before = {node: str(node.name) for node in model.graph.all_nodes()}
    fold_constants(
        model,
        onnx_shape_inference=True,
        output_size_limit=sys.maxsize,  # `_verdict` decides, before anything is computed
        should_fold=lambda node: _verdict(node, near),
    )
    for node in list(model.graph.all_nodes()):
        if _moves_weight(node):
            _move(node)
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.metadata_props.pop(FOLDED_FROM_KEY, None)
    tidy(model)
    after = set(model.graph.all_nodes())
    gone = {node: name for node, name in before.items() if node not in after}
    for node in gone:  # those of a branch that is not taken would go on using weights
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    return list(gone.values())


def _verdict(node: ir.Node, near: Near) -> bool:
    """Return whether to evaluate a node whose inputs are constants."""
    if node.domain or node.op_type in _KEPT or _moves_weight(node):
        return False
    inputs = sum(value.const_value.size for value in node.inputs if value is not None and value.const_value is not None)
    shapes = [static_shape(value) for value in node.outputs]
    if any(shape is None for shape in shapes):
        return node.op_type in _BOUNDED
    size = sum(prod(shape) for shape in shapes if shape is not None)
    if node.op_type == "ConstantOfShape":
        return size <= _FILLED
    if size > max(inputs, _LARGEST):
        near(node, f"constant, but {size} elements would be stored for {inputs}")
        return False
    return True


def _moves_weight(node: ir.Node) -> bool:
    """Return whether a node only moves the elements of a constant that is large, or of floats."""
    if node.domain or node.op_type not in _MOVED or not all(is_constant(value) for value in node.inputs):
        return False
    tensor = node.inputs[0].const_value  # type: ignore[union-attr]  # constants are not None
    assert tensor is not None
    return tensor.size > (_WEIGHT if tensor.dtype.is_floating_point() else _LARGEST)


def _move(node: ir.Node) -> None:
    """Replace a node that moves a weight by the moved weight, which is computed when it is read."""
    source, out, graph = node.inputs[0], node.outputs[0], node.graph
    shape = static_shape(out)
    assert source is not None
    assert graph is not None
    if shape is None or out.dtype is None or out.is_graph_output():
        return
    moved = ir.Value(
        name=out.name,
        type=ir.TensorType(out.dtype),
        shape=ir.Shape(shape),
        const_value=lazily(source, shape, _movement(node, shape), out.dtype),
    )
    moved.metadata_props.update(source.metadata_props)
    bypass(node, moved)
    if not source.uses() and source.graph is graph and not source.is_graph_output():
        moved.name = source.name
        del graph.initializers[str(source.name)]
    graph.register_initializer(moved)


def _movement(node: ir.Node, shape: tuple[int, ...]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", None)
        return lambda data: data.transpose(order)
    return lambda data: data.reshape(shape)
