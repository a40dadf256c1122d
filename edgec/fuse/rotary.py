"""RotaryEmbedding from what exporters write for it: x * cos + rotated(x) * sin.

The rotated half is behind the other one, negated, and the angles of both halves are the same: what shows that is a
Concat of one value with itself. The operator takes the angles of one half.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", https://arxiv.org/abs/2104.09864.
"""

from itertools import permutations

import onnx_ir as ir

from edgec.fuse.emitting import Emitter
from edgec.fuse.rule import (
    MatchFailureError,
    Near,
    Phase,
    Stage,
    constant_of,
    is_constant,
    node_of,
    other_use,
    rank_of,
    scalar_of,
)
from edgec.fuse.surgery import infer_shapes, tidy
from edgec.fuse.terms import maker

TITLE = "RotaryEmbedding from its arithmetic"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"

_RANK = 4


def apply(model: ir.Model, near: Near) -> list[str]:
    """Write rotations as one operator, and return the names of the nodes."""
    changed: list[ir.Node] = []
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Add" and not node.domain]:
            try:
                found = _read(node)
            except MatchFailureError as why:
                near(node, why.reason)
                continue
            if found is not None:
                changed.append(_write(node, *found))
    if changed:
        tidy(model)
        infer_shapes(model)
    return [str(node.name) for node in changed]


def _read(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return x, cos and sin of a rotation that ends with a sum; None if none does.

    Raises:
        MatchFailureError: it is one that the operator does not say.
    """
    for straight, turned in permutations(maker(value, "Mul") for value in node.inputs):
        for rotated, sin in permutations(turned.inputs) if turned is not None else ():
            inner = _rotated(rotated)
            if inner is None or straight is None or sin is None:
                continue
            x, nodes = inner
            cos = next((b for a, b in permutations(straight.inputs) if a is x), None)
            if cos is None:
                continue
            if reason := other_use((node, straight, *([] if turned is None else [turned]), *nodes), node.outputs):
                raise MatchFailureError(reason, node)
            return x, _angles(cos, x), _angles(sin, x)
    return None


def _rotated(value: ir.Value | None) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Return x of (-x[second half], x[first half]), and the operators."""
    concat = maker(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or rank_of(value) is None:  # two halves
        return None
    if concat.attributes.get_int("axis", 0) not in (-1, (rank_of(value) or 0) - 1):
        return None
    negated, second = maker(concat.inputs[0], "Neg"), _part(concat.inputs[1])
    first = None if negated is None else _part(negated.inputs[0])
    if negated is None or first is None or second is None or first[0] is not second[0]:
        return None
    x, size = second[0], second[0].shape[-1] if second[0].shape is not None else None
    if not isinstance(size, int) or (first[1], second[1]) != ((size // 2, size), (0, size // 2)):
        raise MatchFailureError("the parts that are rotated are not known to be halves", concat)
    return x, (concat, negated, *dict.fromkeys((first[2], second[2])))


def _part(value: ir.Value | None) -> tuple[ir.Value, tuple[int, int], ir.Node] | None:
    """Return what a value is a part of along the last axis, from where to where, and the operator."""
    node = maker(value, "Slice", "Split")
    source = None if node is None else node.inputs[0]
    if node is None or value is None or source is None or not rank_of(source):
        return None
    assert source.shape is not None
    size, last = source.shape[-1], (-1, len(source.shape) - 1)
    if not isinstance(size, int):
        raise MatchFailureError("the size of what is rotated is not known", node)
    if node.op_type == "Split":
        if node.attributes.get_int("axis", 0) not in last or len(node.outputs) != 2:  # two halves
            return None
        sizes = [out.shape[-1] if out.shape is not None else None for out in node.outputs]
        start = 0 if value is node.outputs[0] else size // 2
        return (source, (start, start + size // 2), node) if sizes == [size // 2] * 2 else None
    starts, ends, axes, *steps = node.inputs[1:]
    if not (is_constant(starts) and is_constant(ends)) or scalar_of(axes) not in last:
        return None
    if steps and scalar_of(steps[0]) != 1:
        return None
    bounds = slice(*(int(constant_of(bound, "a bound").item()) for bound in (starts, ends)))
    start, end, _ = bounds.indices(size)
    return source, (start, end), node


def _angles(value: ir.Value, x: ir.Value) -> ir.Value:
    """Return cosines or sines (batch, sequence, size) that are shared by all heads.

    Raises:
        MatchFailureError: they are not known to be.
    """
    unsqueeze = maker(value, "Unsqueeze")
    source = None if unsqueeze is None else unsqueeze.inputs[0]
    if unsqueeze is None or source is None or scalar_of(unsqueeze.inputs[1]) != 1 or rank_of(source) != _RANK - 1:
        raise MatchFailureError("the angles are not known to be the same for all heads", value)
    assert source.shape is not None
    if rank_of(x) != _RANK or source.shape[-1] != (x.shape[-1] if x.shape is not None else None):
        raise MatchFailureError("the angles are not known to be for all of what is rotated", value)
    if not _repeats(source):
        raise MatchFailureError("the angles of both halves are not known to be the same", value)
    return source


def _repeats(value: ir.Value) -> bool:
    """Return whether both halves of the last axis are known to be the same."""
    node = maker(value, "Concat", "Cos", "Sin", "Mul", "Cast")
    if node is None:
        return False
    if node.op_type == "Concat":
        is_last = node.attributes.get_int("axis", 0) in (-1, (rank_of(value) or 0) - 1)
        return is_last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]  # two halves
    others = [other for other in node.inputs if other is not None and scalar_of(other) is None]
    return len(others) == 1 and _repeats(others[0])


def _write(node: ir.Node, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Node:
    """Write a rotation in place of the sum that ends it, and return it."""
    emit = Emitter(node)
    assert x.shape is not None
    result = emit.op("RotaryEmbedding", x, *(_half(emit, value, x) for value in (cos, sin)))
    emit.finish(result, x.shape)
    return node_of(result)


def _half(emit: Emitter, angles: ir.Value, x: ir.Value) -> ir.Value:
    """Return the first half of angles (batch, sequence, size), for each row of the batch."""
    assert angles.shape is not None
    assert x.shape is not None
    size = angles.shape[-1]
    assert isinstance(size, int)
    zero, end, last = emit.integers(0), emit.integers(size // 2), emit.integers(2)
    half = emit.op("Slice", angles, zero, end, last)
    if angles.shape[0] == x.shape[0]:
        return half
    rows = emit.op("Concat", emit.size(x, 0), emit.integers(1, 1), axis=0)
    return emit.op("Expand", half, rows)
