"""Scale and shift what goes in or out of an operator that multiplies by constant weights, in those weights."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.rule import constant_of, derived, is_constant, rank_of, small

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose weights are their second input."""

Floats = NDArray[np.float64]


def refusal(node: ir.Node) -> str | None:
    """Return why the weights of a linear operator must stay as they are; None if they may change."""
    weight = node.inputs[1]
    if weight is None or not is_constant(weight):
        return "the weight is not a constant"
    if len(weight.uses()) > 1:
        other = next(use.node for use in weight.uses() if use.node is not node)
        return f"the weight {weight.name} is shared with {other.name}"
    bias = bias_of(node)
    if bias is not None and not is_constant(bias):
        return "the bias is not a constant"
    if node.op_type == "MatMul" and rank_of(weight) != 2:
        return "the weight is not a matrix"
    if bias is not None and node.op_type == "Gemm" and bias.const_value is not None:
        shape = bias.const_value.shape.numpy()
        if len(shape) == 2 and shape[0] != 1:
            return "the bias differs from row to row"
    return None


def outputs_of(node: ir.Node) -> int:
    """Return how many outputs (channels) a linear operator with constant weights has."""
    shape = _weight_shape(node)
    if node.op_type == "ConvTranspose":
        return shape[1] * _groups(node)
    return shape[_output_axis(node)]


def inputs_of(node: ir.Node) -> int:
    """Return how many inputs (channels) a Conv or Gemm with constant weights has."""
    shape = _weight_shape(node)
    return shape[1] * _groups(node) if node.op_type == "Conv" else shape[1 - _output_axis(node)]


def bias_of(node: ir.Node) -> ir.Value | None:
    """Return what a linear operator adds, if it has such an input."""
    return node.inputs[2] if len(node.inputs) > 2 else None


def emit_scaled(op: Any, node: ir.Node, scale: Floats, shift: Floats) -> Any:
    """Emit a linear operator whose outputs are scaled, and shifted after that.

    Args:
        op: the builder that `rewrite` gets.
        node: the operator; `refusal` says None of it.
        scale: one number for each output.
        shift: likewise.
    """
    return _emit(op, node, node.inputs[0], _along_outputs(scale, node), _bias(node) * scale + shift)


def emit_fed(op: Any, node: ir.Node, x: ir.Value, scale: Floats, shift: Floats) -> Any:
    """Emit a Conv or Gemm that does with `x` what `node` does with `x` scaled and shifted; it must not pad.

    Args:
        op: the builder that `rewrite` gets.
        node: the operator; `refusal` says None of it.
        x: the new input.
        scale: one number for each input.
        shift: likewise.
    """
    data = constant_of(node.inputs[1], "the weight").astype(np.float64)
    summed = tuple(axis for axis in range(data.ndim) if axis != _output_axis(node))
    added = (data * _along_inputs(shift, node)).sum(summed) * node.attributes.get_float("alpha", 1.0)
    return _emit(op, node, x, _along_inputs(scale, node), _bias(node) + added)


def _emit(op: Any, node: ir.Node, x: ir.Value | None, factor: Floats, bias: Floats) -> Any:
    source = node.inputs[1]
    assert source is not None
    assert source.const_value is not None
    weight = derived(op, source, _weight_shape(node), lambda data: data * factor)
    attributes = {name: value for name, value in node.attributes.items() if name != "beta"}
    old = bias_of(node)
    if old is None and not bias.any():
        return op.op(node.op_type, x, weight, **attributes)
    name = str(old.name) if old is not None else _bias_name(str(source.name))
    added = small(op, name, bias.astype(source.const_value.dtype.numpy()))
    if node.op_type == "MatMul":
        return op.Add(op.MatMul(x, weight), added)
    return op.op(node.op_type, x, weight, added, **attributes)


def _bias(node: ir.Node) -> Floats:
    bias = bias_of(node)
    if bias is None:
        return np.zeros(outputs_of(node))
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    flat = constant_of(bias, "the bias").astype(np.float64).reshape(-1)
    return np.broadcast_to(flat * beta, (outputs_of(node),)).copy()


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.bias" if weight.endswith(".weight") else f"{weight}_bias"


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return tuple(weight.const_value.shape.numpy())


def _groups(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1)


def _output_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1 else 1


def _along_outputs(scale: Floats, node: ir.Node) -> Floats:
    """Return one number for each output in a shape that multiplies the weight."""
    shape = _weight_shape(node)
    if node.op_type == "ConvTranspose":  # (in, out / groups, ...): the rows of a group have the outputs of that group
        groups = _groups(node)
        table = np.repeat(scale.reshape(groups, -1), shape[0] // groups, axis=0)
        return table.reshape(*table.shape, *(1 for _ in shape[2:]))
    axis = _output_axis(node)
    return scale.reshape([-1 if position == axis else 1 for position in range(len(shape))])


def _along_inputs(numbers: Floats, node: ir.Node) -> Floats:
    """Return one number for each input of a Conv or Gemm in a shape that multiplies the weight."""
    shape = _weight_shape(node)
    if node.op_type == "Conv":  # (out, in / groups, ...): the rows of a group have the inputs of that group
        table = np.repeat(numbers.reshape(_groups(node), -1), shape[0] // _groups(node), axis=0)
        return table.reshape(*table.shape, *(1 for _ in shape[2:]))
    return numbers.reshape([1, -1] if _output_axis(node) == 0 else [-1, 1])
