"""Layers: where channels are born and where they are read."""

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import is_constant
from edgec.graph.store import shape_of
from edgec.prune.channels_known import HeldError, need_rank, size_of
from edgec.prune.channels_trace import Count, Filter, Labels, Rule, Trace


def _weight(node: ir.Node) -> tuple[ir.Value, tuple[int, ...]]:
    """Return the weight of a layer, and its shape."""
    weight = node.inputs[1]
    if weight is None or not is_constant(weight) or weight.const_value is None:
        raise HeldError("its weight is not a constant")
    return weight, shape_of(weight.const_value)


def _given(trace: Trace, node: ir.Node, axis: int) -> Labels | None:
    """Return the labels of what a layer reads along the axis that it sums over; None where nothing goes there."""
    layout = trace.layout(node.inputs[0])
    if layout is None:
        return None
    if layout.axis != axis:
        raise HeldError("it sums over another axis")
    return layout.labels


def _matrix(trace: Trace, node: ir.Node, output_axis: int) -> Labels:
    """Put down the weight (two axes) of a product, and return the labels of its outputs."""
    weight, shape = _weight(node)
    source = node.inputs[0]
    if len(shape) != 2:
        raise HeldError("its weight is no matrix")
    last = need_rank(source) - 1
    given = _given(trace, node, last)
    out = trace.fresh(shape[output_axis])
    axes = {output_axis: out} if given is None else {output_axis: out, 1 - output_axis: given}
    trace.cut(node, 1, axes)
    trace.filters.append(Filter(node, weight, output_axis, out))
    if given is not None:
        trace.filters.append(Filter(node, weight, 1 - output_axis, given, source))
    trace.give(node.outputs[0], last, out)
    return out


def _matmul(trace: Trace, node: ir.Node) -> None:
    _matrix(trace, node, 1)


def _gemm(trace: Trace, node: ir.Node) -> None:
    if node.attributes.get_int("transA", 0) == 1:
        raise HeldError("it transposes what it reads")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not is_constant(bias):
        raise HeldError("its bias is not a constant")
    out = _matrix(trace, node, 0 if node.attributes.get_int("transB", 0) == 1 else 1)
    if bias is not None:
        axis = need_rank(bias) - 1
        trace.cut(node, 2, {} if size_of(bias, axis) == 1 else {axis: out})


def _conv(trace: Trace, node: ir.Node) -> None:
    """Conv: weight (out, in / groups, ...); ConvTranspose: weight (in, out / groups, ...)."""
    weight, shape = _weight(node)
    turned, groups = node.op_type == "ConvTranspose", node.attributes.get_int("group", 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not is_constant(bias):
        raise HeldError("its bias is not a constant")
    inputs, outputs = (shape[0], shape[1] * groups) if turned else (shape[1] * groups, shape[0])
    out, given = trace.fresh(outputs), _given(trace, node, 1)
    output_axis, input_axis = int(turned), int(not turned)
    if groups == 1:
        axes = {output_axis: out} if given is None else {output_axis: out, input_axis: given}
    else:
        given = trace.staying(inputs, f"{node.op_type} {node.name} reads an input") if given is None else given
        axes = _grouped(trace, node, given.reshape(groups, -1), out.reshape(groups, -1))
    trace.cut(node, 1, axes)
    trace.filters.append(Filter(node, weight, output_axis, out, groups=groups))
    if given is not None and len(axes) > 1:  # whole groups give what they read: it counts where that is read
        trace.filters.append(Filter(node, weight, input_axis, given, node.inputs[0], groups))
    if bias is not None:
        trace.cut(node, 2, {0: out})
    trace.give(node.outputs[0], 1, out)


def _grouped(trace: Trace, node: ir.Node, given: Labels, out: Labels) -> dict[int, Labels]:
    """Tie channels (groups, of each group) so that all groups stay alike; return the labels along the weight's axes.

    Many small groups (depthwise is the extreme) go as a whole; of few large ones, each gives up the same positions.
    """
    turned = node.op_type == "ConvTranspose"
    first, second = (given, out) if turned else (out, given)
    if len(given) >= given.shape[1]:
        members = np.concatenate((given, out), axis=1)
        trace.tie(*members.T)
        trace.counts.append(Count(node, out[:, 0]))
        return {0: first.reshape(-1)}
    trace.tie(*given)
    trace.tie(*out)
    return {0: first.reshape(-1), 1: second[0]}


LAYERS: dict[str, Rule] = {"Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul}
