"""Shapes computed from sizes, as constants: a size is known, copied from the input (0), or the only open one (-1).

Older exporters take each size out of a tensor's shape and put it back together in front of each Reshape and Expand.
"""

from math import prod

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import Near, Phase, Stage, constant_of, is_constant, static_shape
from edgec.fuse.surgery import infer_shapes, size_name

TITLE = "computed shapes made constant"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"

Size = int | str | None
"""A number, the name of a size, or None if nothing is known."""

_LONGEST = 16  # elements of what can still be a shape


def apply(model: ir.Model, near: Near) -> list[str]:
    """Give operators constant shapes, and return their names."""
    changed = []
    for node in model.graph.all_nodes():
        if node.domain or node.op_type not in {"Reshape", "Expand"} or is_constant(node.inputs[1]):
            continue
        wanted, source = _sizes(node.inputs[1]), node.inputs[0]
        if wanted is None or source is None or source.shape is None:
            continue
        if 0 in wanted and node.attributes.get_int("allowzero", 0) == 1:
            near(node, "a size that is asked for is 0")
            continue
        have = [_size(dim) for dim in source.shape]
        target = _reshape(wanted, have) if node.op_type == "Reshape" else _expand(wanted, have)
        if target is not None:
            _set_shape(node, target)
            changed.append(str(node.name))
        elif node.op_type == "Reshape":  # Expand is there to make sizes that its input does not have
            near(node, f"of the shape ({', '.join(map(_shown, wanted))}) too little is known")
    if changed:
        infer_shapes(model)
    return changed


def _shown(size: Size) -> str:
    return str(size) if isinstance(size, int) else size_name(ir.SymbolicDim(size)) or "?"


def _reshape(wanted: tuple[Size, ...], have: list[Size]) -> list[int] | None:
    """Return the shape for Reshape, in which 0 copies a size; None if more than one is open."""
    copied = [
        size == 0 or (size is not None and axis < len(have) and size == have[axis]) for axis, size in enumerate(wanted)
    ]
    target = [0 if same else size if isinstance(size, int) else -1 for size, same in zip(wanted, copied, strict=True)]
    if target.count(-1) > 1:
        return None
    left = [size for axis, size in enumerate(have) if axis >= len(copied) or not copied[axis]]
    numbers = [size for size in left if isinstance(size, int)]
    if -1 in target and len(numbers) == len(left) and all(numbers):  # what is not copied is known: so is what is open
        target[target.index(-1)] = prod(numbers) // prod(size for size in target if size > 0)
    return target


def _expand(wanted: tuple[Size, ...], have: list[Size]) -> list[int] | None:
    """Return the shape for Expand, where a size of the input is written as 1; None if a size is open."""
    padded = [1] * (len(wanted) - len(have)) + have
    if len(padded) != len(wanted):
        return None
    target = [1 if size == old and size is not None else size for size, old in zip(wanted, padded, strict=True)]
    numbers = [size for size in target if isinstance(size, int)]
    return numbers if len(numbers) == len(target) else None


def _set_shape(node: ir.Node, target: list[int]) -> None:
    graph = node.graph
    assert graph is not None
    tensor = ir.tensor(np.array(target, np.int64))
    value = ir.Value(
        name=f"{node.name}_shape", type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(target)]), const_value=tensor
    )
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.attributes.pop("allowzero", None)  # no 0 is asked for, and those that are written copy


def _size(dim: int | ir.SymbolicDim) -> Size:
    return dim if isinstance(dim, int) else dim.value


def _sizes(value: ir.Value | None) -> tuple[Size, ...] | None:
    """Return the elements of a vector or number that is computed from sizes; None if that is not what it is."""
    if value is None or is_constant(value):
        return _numbers(value)
    node = value.producer()
    kind = "" if node is None or node.domain else node.op_type
    if node is None or kind not in _READERS:
        return _unknown(value)
    return _READERS[kind](node)


def _numbers(value: ir.Value | None) -> tuple[Size, ...] | None:
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.size > _LONGEST or not tensor.dtype.is_integer():
        return None
    return tuple(int(size) for size in tensor.numpy().reshape(-1))


def _unknown(value: ir.Value) -> tuple[Size, ...] | None:
    """Return as many unknown sizes as a vector has elements."""
    shape = static_shape(value)
    return None if shape is None or len(shape) > 1 or sum(shape) > _LONGEST else (None,) * prod(shape)


def _shape(node: ir.Node) -> tuple[Size, ...] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    end = node.attributes.get_int("end", len(source.shape))
    return tuple(_size(dim) for dim in source.shape)[node.attributes.get_int("start", 0) : end]


def _joined(node: ir.Node) -> tuple[Size, ...] | None:
    parts = [_sizes(part) for part in node.inputs]
    return None if any(part is None for part in parts) else tuple(size for part in parts for size in part or ())


def _taken(node: ir.Node) -> tuple[Size, ...] | None:
    """Return what Gather or Slice takes of sizes."""
    sizes = _sizes(node.inputs[0])
    if sizes is None or not all(is_constant(index) for index in node.inputs[1:] if index is not None):
        return _unknown(node.outputs[0])
    numbers = [constant_of(value, "an index").reshape(-1).tolist() for value in node.inputs[1:] if value is not None]
    if node.op_type == "Gather":
        return tuple(sizes[index] for index in numbers[0])
    start, end, step = numbers[0][0], numbers[1][0], numbers[3][0] if len(numbers) > 3 else 1
    return sizes[start:end:step]


def _passed(node: ir.Node) -> tuple[Size, ...] | None:
    return _sizes(node.inputs[0])


_READERS = {
    "Shape": _shape,
    "Concat": _joined,
    "Gather": _taken,
    "Slice": _taken,
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _passed),
}
"""How the result of an operator on sizes is read."""
