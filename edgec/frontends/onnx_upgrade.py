"""Graphs of any opset that onnx knows as graphs of the canonical opset."""

from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir

from edgec.errors import CheckpointError, first_line
from edgec.frontends.onnx_values import forget_shapes, skeleton

CANONICAL_OPSET = 23
CANONICAL_IR_VERSION = 11


def upgrade(model: ir.Model, path: Path) -> ir.Model:
    """Return a model in the canonical opset that shares the weights of `model`; constants are made where it needs some.

    Args:
        model: without functions (the converter drops them); each value has a name of its own.
        path: where it came from.

    Raises:
        CheckpointError: an operator cannot be said in the canonical opset.
    """
    opset = model.opset_imports[""]
    model.ir_version = CANONICAL_IR_VERSION
    if opset == CANONICAL_OPSET:
        return model
    try:
        upgraded = _convert(model)
    except (onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise CheckpointError(
            f"opset {opset} cannot be turned into {CANONICAL_OPSET}: {first_line(error).split(' failed: ')[-1]}",
            where=str(path),
            hint=f"export the model for opset {CANONICAL_OPSET}",
        ) from error
    weights = {name: value.const_value for graph in model.graphs() for name, value in graph.initializers.items()}
    known = {value.name for graph in model.graphs() for node in graph for value in node.outputs}
    for graph in upgraded.graphs():
        for name, value in graph.initializers.items():
            value.const_value = weights.get(name, value.const_value)
        for value in (value for node in graph for value in node.outputs):
            if value.name not in known:
                value.name = None  # the converter's own names are numbers
    return upgraded


def _convert(model: ir.Model) -> ir.Model:
    """Convert the graph without its weights, and without what the file says of shapes where that is wrong."""
    try:
        proto = onnx.version_converter.convert_version(skeleton(model), CANONICAL_OPSET)
    except onnx.shape_inference.InferenceError:
        forget_shapes(model)
        proto = onnx.version_converter.convert_version(skeleton(model), CANONICAL_OPSET)
    converted: ir.Model = ir.from_proto(proto)
    return converted
