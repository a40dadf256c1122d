"""Attention masks that torch looks up element by element, as the reshapes that they are.

torch writes mask[i, j] for all i and j as a GatherND of all positions, and joins it with conditions on positions that
hold everywhere (j >= 0). What is looked up at its own position is there already.
"""

import onnx_ir as ir

from edgec.fuse.emitting import Emitter
from edgec.fuse.rule import Near, Phase, Stage, constant_of, is_constant, scalar_of
from edgec.fuse.surgery import bypass, infer_shapes, same_size, tidy
from edgec.fuse.terms import maker

TITLE = "masks without lookups"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"


def apply(model: ir.Model, near: Near) -> list[str]:  # noqa: ARG001  most lookups are none of positions
    """Replace lookups of all positions, and conditions that always hold; return the names of what they were."""
    changed = []
    for node in [node for node in model.graph.all_nodes() if not node.domain]:
        name = str(node.name)
        if (node.op_type == "GatherND" and _looked_up(node)) or (node.op_type == "And" and _always(node)):
            changed.append(name)
    if changed:
        tidy(model)
        infer_shapes(model)
    return changed


def _looked_up(node: ir.Node) -> bool:
    """Replace a GatherND of all positions by an Unsqueeze, and return whether it was one."""
    data, indices, out = node.inputs[0], maker(node.inputs[1], "Concat"), node.outputs[0]
    if data is None or data.shape is None or out.shape is None or indices is None:
        return False
    rank = len(out.shape)
    axes = [_position(part, rank) for part in indices.inputs]
    last = indices.attributes.get_int("axis", 0) in (-1, rank)
    if not last or node.attributes.get_int("batch_dims", 0) != 0 or len(axes) != len(data.shape):
        return False
    places = [axis for axis in axes if axis is not None]
    if len(places) < len(axes) or places != sorted(set(places)):
        return False
    added = [axis for axis in range(rank) if axis not in places]
    whole = all(same_size(out.shape[axis], size) for axis, size in zip(places, data.shape, strict=True))
    if not whole or any(out.shape[axis] != 1 for axis in added):
        return False
    emit, shape = Emitter(node), list(out.shape)
    emit.finish(emit.op("Unsqueeze", data, emit.integers(*added)), shape)
    return True


def _position(part: ir.Value | None, rank: int) -> int | None:
    """Return along which axis of all others a part of indices (..., 1) is its own position."""
    unsqueeze = maker(part, "Unsqueeze")
    if unsqueeze is None or scalar_of(unsqueeze.inputs[1]) not in (-1, rank):
        return None
    return _ramp(unsqueeze.inputs[0])


def _ramp(value: ir.Value | None) -> int | None:
    """Return the axis along which a value counts from 0; None if it does not."""
    node = maker(value, "Range", "Unsqueeze", "Expand")
    if node is None or value is None or value.shape is None:
        return None
    if node.op_type == "Range":
        return 0 if scalar_of(node.inputs[0]) == 0 and scalar_of(node.inputs[2]) == 1 else None
    source = node.inputs[0]
    axis, rank = _ramp(source), len(value.shape)
    if axis is None or source is None or source.shape is None:
        return None
    if node.op_type == "Expand":
        # Were the axis of size 1, it would be repeated; `_looked_up` compares it with what is looked up.
        axis += rank - len(source.shape)
        return axis if same_size(value.shape[axis], source.shape[axis - rank]) else None
    if not is_constant(node.inputs[1]):
        return None
    added = {int(position) % rank for position in constant_of(node.inputs[1], "axes")}
    return [position for position in range(rank) if position not in added][axis]


def _always(node: ir.Node) -> bool:
    """Replace And with a condition that always holds by the other one, and return whether there was one."""
    # A constant goes first, so that what is left of two conditions is the one that knows sizes.
    for at in sorted((0, 1), key=lambda at: not is_constant(node.inputs[at])):
        condition, value, shape = node.inputs[at], node.inputs[1 - at], node.outputs[0].shape
        if condition is None or value is None or shape is None or value.shape is None or not _holds(condition):
            continue
        have = [1] * (len(shape) - len(value.shape)) + list(value.shape)
        wide = [axis for axis, size in enumerate(shape) if not same_size(size, have[axis])]
        emit, sizes = Emitter(node), list(shape)
        counts = {axis: emit.known_size(shape[axis]) for axis in wide}
        if any(count is None for count in counts.values()):
            continue
        if not wide:
            return bypass(node, value)
        one = emit.integers(1)
        targets = [counts.get(axis) or one for axis in range(len(shape))]
        emit.finish(emit.op("Expand", value, emit.op("Concat", *targets, axis=0)), sizes)
        return True
    return False


def _holds(condition: ir.Value) -> bool:
    """Return whether a condition is known to be true everywhere."""
    if is_constant(condition):
        return bool(constant_of(condition, "a condition").all())
    node = maker(condition, "GreaterOrEqual", "Expand")
    if node is None:
        return False
    if node.op_type == "Expand":
        return node.inputs[0] is not None and _holds(node.inputs[0])
    least = scalar_of(node.inputs[1])
    return least is not None and least <= 0 and _ramp(node.inputs[0]) is not None
