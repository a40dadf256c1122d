"""Operators that leave channels apart: elementwise, along other axes, and those that join or take some of them."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import is_constant
from edgec.prune.channels_known import HeldError, need_rank, numbers, size_of
from edgec.prune.channels_linear import LAYERS
from edgec.prune.channels_shapes import SHAPES
from edgec.prune.channels_trace import Count, Labels, Layout, Rule, Trace

_POINTWISE = (
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign"),
    *("Sin", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
)
_BROADCAST = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul"),
    *("Or", "Pow", "PRelu", "Sub", "Sum", "Where"),
)
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_NORMS = ("BatchNormalization", "InstanceNormalization")
_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_ALONG = ("LogSoftmax", "Softmax")
_TO_THE_END = ("LayerNormalization", "RMSNormalization")


def _same(trace: Trace, node: ir.Node) -> None:
    """Put the channels of the first input where they were."""
    layout = trace.source(node)
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise HeldError("it gives more than one value")
    trace.give(node.outputs[0], layout.axis, layout.labels)


def _pool(trace: Trace, node: ir.Node) -> None:
    if trace.source(node).axis != 1:
        raise HeldError("it pools along them")
    _same(trace, node)


def _norm(trace: Trace, node: ir.Node) -> None:
    """Cut the numbers that a normalization of each channel has for it."""
    layout = trace.source(node)
    if layout.axis != 1:
        raise HeldError("it normalizes along them")
    _same(trace, node)
    for index in range(1, len(node.inputs)):
        trace.cut(node, index, {0: layout.labels})


def _broadcast(trace: Trace, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None]
    rank = max(map(need_rank, values))
    layout = _tied(trace, node, values, rank)
    trace.give(node.outputs[0], layout.axis, layout.labels)


def _tied(trace: Trace, node: ir.Node, values: Sequence[ir.Value], rank: int) -> Layout:
    """Tie the channels of values that meet position by position, and return them in a result of `rank` axes."""
    found = {value: _moved(layout, rank - need_rank(value)) for value in values if (layout := trace.layout(value))}
    width = max(len(layout.labels) for layout in found.values())
    spread = {value for value, layout in found.items() if len(layout.labels) < width}
    for one in spread:  # nothing shrinks with it
        trace.held.append((found.pop(one).labels, f"{node.op_type} {node.name} spreads it over other channels"))
    lead, *others = found.values()
    if any(other.axis != lead.axis for other in others):
        raise HeldError("channels along different axes meet")
    trace.tie(lead.labels, *(other.labels for other in others))
    for index, value in enumerate(node.inputs):
        if value is None or value in found:
            continue
        axis = lead.axis - (rank - need_rank(value))
        size = size_of(value, axis)
        if is_constant(value) and size in (1, width):
            trace.cut(node, index, {axis: lead.labels} if size != 1 else {})
        elif size != 1:
            raise HeldError(f"they meet {value.name}, whose channels stay")
    return lead


def _moved(layout: Layout, axes: int) -> Layout:
    return Layout(layout.axis + axes, layout.labels)


def _concat(trace: Trace, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None]
    rank = need_rank(values[0])
    axis = node.attributes.get_int("axis", 0) % rank
    found = [layout for value in values if (layout := trace.layout(value))]
    if all(layout.axis != axis for layout in found):
        layout = _tied(trace, node, values, rank)
        trace.give(node.outputs[0], layout.axis, layout.labels)
    elif any(layout.axis != axis for layout in found):
        raise HeldError("channels along different axes meet")
    else:
        parts = [_part(trace, node, value, axis) for value in values]
        trace.give(node.outputs[0], axis, np.concatenate(parts))


def _part(trace: Trace, node: ir.Node, value: ir.Value, axis: int) -> Labels:
    """Return the labels of one input of Concat; others than channels stay."""
    layout = trace.layout(value)
    if layout is not None:
        return layout.labels
    size = size_of(value, axis)
    if size is None:
        raise HeldError(f"the size of {value.name} is not known")
    return trace.staying(size, f"{node.op_type} {node.name} adds {value.name}, whose channels stay")


def _split(trace: Trace, node: ir.Node) -> None:
    layout = trace.source(node)
    if node.attributes.get_int("axis", 0) % need_rank(node.inputs[0]) != layout.axis:
        for value in node.outputs:
            trace.give(value, layout.axis, layout.labels)
        return
    total, parts = len(layout.labels), len(node.outputs)
    chunk = -(-total // parts)
    sizes = numbers(node, 1, lambda: [chunk] * (parts - 1) + [total - chunk * (parts - 1)])
    ends = np.cumsum(sizes)
    for position, (value, labels) in enumerate(zip(node.outputs, np.split(layout.labels, ends[:-1]), strict=True)):
        trace.give(value, layout.axis, labels)
        trace.counts.append(Count(node, labels, 1, position))


def _slice(trace: Trace, node: ir.Node) -> None:
    layout, rank = trace.source(node), need_rank(node.inputs[0])
    starts = numbers(node, 1) if len(node.inputs) < 4 or node.inputs[3] is None else []
    axes = [axis % rank for axis in numbers(node, 3, lambda: range(len(starts)))]
    if layout.axis not in axes:
        trace.give(node.outputs[0], layout.axis, layout.labels)
        return
    at = axes.index(layout.axis)
    if numbers(node, 4, lambda: [1] * len(axes))[at] != 1:
        raise HeldError("it takes some of them by steps")
    start, end, _ = slice(numbers(node, 1)[at], numbers(node, 2)[at]).indices(len(layout.labels))
    trace.give(node.outputs[0], layout.axis, layout.labels[start:end])
    trace.counts += [Count(node, layout.labels[:start], 1, at), Count(node, layout.labels[:end], 2, at)]


def _pad(trace: Trace, node: ir.Node) -> None:
    layout, rank = trace.source(node), need_rank(node.inputs[0])
    pads, axes = numbers(node, 1), [axis % rank for axis in numbers(node, 3, lambda: range(rank))]
    if layout.axis in axes:
        at = axes.index(layout.axis)
        if pads[at] or pads[at + len(axes)]:
            raise HeldError("it adds channels")
    _same(trace, node)


def _resize(trace: Trace, node: ir.Node) -> None:
    layout, rank = trace.source(node), need_rank(node.inputs[0])
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise HeldError("sizes are bounds")
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise HeldError("it crops")
    attribute = node.attributes.get("axes")
    axes = [axis % rank for axis in (range(rank) if attribute is None else attribute.as_ints())]
    if layout.axis in axes:
        at = axes.index(layout.axis)
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            if numbers(node, 3)[at] != len(layout.labels):
                raise HeldError("it changes how many there are")
            trace.counts.append(Count(node, layout.labels, 3, at))
        elif not is_constant(node.inputs[2]) or np.asarray(node.inputs[2].const_value.numpy()).reshape(-1)[at] != 1:  # type: ignore[union-attr]
            raise HeldError("it may change how many there are")
    _same(trace, node)


def _reduce(trace: Trace, node: ir.Node) -> None:
    layout, rank = trace.source(node), need_rank(node.inputs[0])
    axes = {axis % rank for axis in numbers(node, 1, list)}
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 0:
        axes = set(range(rank))
    if layout.axis in axes:
        raise HeldError("it reduces them to one number")
    gone = 0 if node.attributes.get_int("keepdims", 1) == 1 else sum(axis < layout.axis for axis in axes)
    trace.give(node.outputs[0], layout.axis - gone, layout.labels)


def _along(trace: Trace, node: ir.Node) -> None:
    """Let operators pass that normalize along another axis; with those after it, if they do."""
    layout, rank = trace.source(node), need_rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % rank
    if layout.axis == axis or (node.op_type in _TO_THE_END and layout.axis > axis):
        raise HeldError("its result depends on how many there are")
    _same(trace, node)


RULES: dict[str, Rule] = {
    **LAYERS,
    **SHAPES,
    **dict.fromkeys((*_POINTWISE, "Dropout"), _same),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys([f"Reduce{kind}" for kind in _REDUCE], _reduce),
    **dict.fromkeys((*_ALONG, *_TO_THE_END), _along),
    "Concat": _concat,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}
"""How each operator treats channels; one that is not here holds all that reach it."""
