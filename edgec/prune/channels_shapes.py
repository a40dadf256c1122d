"""Operators that give a value other axes: channels move, are repeated, or are tied to be one axis again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from edgec.prune.channels_known import HeldError, need_rank, numbers
from edgec.prune.channels_trace import Count, Labels, Layout, Rule, Trace


@dataclass(frozen=True)
class _Size:
    """A product of sizes: the number, and the names of open ones, sorted, each as often as it occurs."""

    number: int
    names: tuple[str, ...] = ()


def _transpose(trace: Trace, node: ir.Node) -> None:
    layout = trace.source(node)
    order = node.attributes.get("perm")
    axes = list(reversed(range(need_rank(node.inputs[0])))) if order is None else list(order.as_ints())
    trace.give(node.outputs[0], axes.index(layout.axis), layout.labels)


def _squeeze(trace: Trace, node: ir.Node) -> None:
    layout, rank = trace.source(node), need_rank(node.inputs[0])
    axes = {axis % rank for axis in numbers(node, 1)}
    if layout.axis in axes:
        raise HeldError("it removes their axis")
    trace.give(node.outputs[0], layout.axis - sum(axis < layout.axis for axis in axes), layout.labels)


def _unsqueeze(trace: Trace, node: ir.Node) -> None:
    layout, added = trace.source(node), numbers(node, 1)
    rank = need_rank(node.inputs[0]) + len(added)
    kept = [axis for axis in range(rank) if axis not in {each % rank for each in added}]
    trace.give(node.outputs[0], kept[layout.axis], layout.labels)


def _flatten(trace: Trace, node: ir.Node) -> None:
    layout, sizes = trace.source(node), _dims(node.inputs[0])
    axis = node.attributes.get_int("axis", 1)
    axis = axis + len(sizes) if axis < 0 else axis
    if axis != 1 or layout.axis < 1:
        raise HeldError("it flattens them with other axes")
    result = _reshaped(trace, layout, sizes, [sizes[0], _product(sizes[1:])])
    trace.give(node.outputs[0], result.axis, result.labels)


def _reshape(trace: Trace, node: ir.Node) -> None:
    layout, sizes = trace.source(node), _dims(node.inputs[0])
    target = numbers(node, 1)
    if 0 in target and node.attributes.get_int("allowzero", 0) == 1:
        raise HeldError("it asks for a size of 0")
    result = _reshaped(trace, layout, sizes, _resolved(target, sizes))
    if target[result.axis] > 0:
        trace.counts.append(Count(node, result.labels, 1, result.axis))
    elif target[result.axis] == 0 and result.axis != layout.axis:
        raise HeldError("it copies the size of another axis")
    trace.give(node.outputs[0], result.axis, result.labels)


def _dims(value: ir.Value | None) -> list[_Size]:
    """Return the sizes of a value; an open one without a name has one that no other has."""
    if value is None or value.shape is None:
        raise HeldError(f"the shape of {value and value.name} is not known")
    return [
        _Size(dim) if isinstance(dim, int) else _Size(1, (dim.value or f"{value.name}[{axis}]",))
        for axis, dim in enumerate(value.shape)
    ]


def _product(sizes: Sequence[_Size]) -> _Size:
    names = sorted(name for size in sizes for name in size.names)
    return _Size(prod(size.number for size in sizes), tuple(names))


def _resolved(target: Sequence[int], sizes: Sequence[_Size]) -> list[_Size]:
    """Return the sizes that a Reshape gives: 0 copies one, -1 is what is left."""
    result = [sizes[axis] if size == 0 else _Size(size) for axis, size in enumerate(target)]
    if -1 in target:
        have, rest = _product(sizes), _product([size for size in result if size.number != -1])
        left = Counter(have.names)
        left.subtract(rest.names)
        if min(left.values(), default=0) < 0 or not rest.number or have.number % rest.number:
            raise HeldError("too little is known of the sizes")
        result[target.index(-1)] = _Size(have.number // rest.number, tuple(sorted(left.elements())))
    return result


def _reshaped(trace: Trace, layout: Layout, sizes: Sequence[_Size], result: Sequence[_Size]) -> Layout:
    """Return where channels lie after the axes `sizes` became the axes `result`, in row-major order."""
    labels, axis = layout.labels, layout.axis
    for start in range(axis, -1, -1):
        for at in reversed(range(len(result))):
            if _product(result[:at]) != _product(sizes[:start]):
                continue
            merged = _merged(labels, sizes, start, axis, result[at])
            if merged is not None:
                return Layout(at, merged)
            ends = range(at + 1, len(result) + 1) if start == axis else ()
            end = next((end for end in ends if _product(result[at:end]) == _Size(len(labels))), None)
            if end is not None:
                return _parted(trace, labels, at, [size.number for size in result[at:end]])
    raise HeldError("their axis is lost in the new shape")


def _merged(labels: Labels, sizes: Sequence[_Size], start: int, axis: int, wanted: _Size) -> Labels | None:
    """Return the labels along an axis of `wanted` positions that axes from `start` on make; None if they do not."""
    for end in range(axis + 1, len(sizes) + 1):
        whole = _product(sizes[start:end])
        if whole == wanted and not whole.names:
            return np.tile(labels.repeat(_product(sizes[axis + 1 : end]).number), _product(sizes[start:axis]).number)
    return None


def _parted(trace: Trace, labels: Labels, at: int, sizes: list[int]) -> Layout:
    """Let channels that become several axes lie along one of them, and tie them along the others: as few as can be."""
    tables = [np.moveaxis(labels.reshape(sizes), axis, 0).reshape(size, -1) for axis, size in enumerate(sizes)]
    axis = int(np.argmin([(table != table[:, :1]).sum() for table in tables]))
    trace.tie(*tables[axis].T)
    return Layout(at + axis, tables[axis][:, 0])


def _depth_to_space(trace: Trace, node: ir.Node) -> None:
    """Tie the channels that become a block of pixels."""
    layout, block = trace.source(node), node.attributes.get_int("blocksize", 1) ** 2
    if layout.axis != 1:
        raise HeldError("it moves them in space")
    first = node.attributes.get_string("mode", "DCR") == "DCR"
    table = layout.labels.reshape(block, -1) if first else layout.labels.reshape(-1, block).T
    trace.tie(*table)
    trace.give(node.outputs[0], 1, table[0])


def _space_to_depth(trace: Trace, node: ir.Node) -> None:
    layout = trace.source(node)
    if layout.axis != 1:
        raise HeldError("it moves them in space")
    trace.give(node.outputs[0], 1, np.tile(layout.labels, node.attributes.get_int("blocksize", 1) ** 2))


SHAPES: dict[str, Rule] = {
    "DepthToSpace": _depth_to_space,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "SpaceToDepth": _space_to_depth,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
