"""Operators that return what they are given."""

import onnx_ir as ir

from edgec.fuse.rule import Near, Phase, Stage, constant_of, is_constant, rank_of, scalar_of
from edgec.fuse.surgery import bypass

TITLE = "operators without effect removed"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_FAR = 2**31 - 1  # what exporters write for "to the end", and above


def apply(model: ir.Model, near: Near) -> list[str]:  # noqa: ARG001  an operator has an effect or it has none
    """Remove operators without effect, and return their names."""
    return [str(node.name) for node in list(model.graph.all_nodes()) if _remove(node)]


def _remove(node: ir.Node) -> bool:
    if node.domain or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    source = _same_as(node)
    return source is not None and bypass(node, source)


def _same_as(node: ir.Node) -> ir.Value | None:
    """Return the input that a node's first output always equals, if there is one."""
    kind = node.op_type
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if kind in _NEUTRAL:
        return _neutral(node)
    same = (
        (kind == "Identity")
        or (kind == "Dropout" and not _trains(node))
        or (kind == "Cast" and source.dtype is not None and int(source.dtype) == node.attributes.get_int("to", 0))
        or (kind in {"Concat", "Sum", "Max", "Min", "Mean"} and len(node.inputs) == 1)
        or (kind == "Reshape" and _reshapes_to_itself(node))
        or (kind == "Expand" and _expands_to_itself(node))
        or (kind == "Slice" and _takes_everything(node))
        or (kind == "Pad" and is_constant(node.inputs[1]) and not constant_of(node.inputs[1], "pads").any())
        or (kind == "Squeeze" and rank_of(source) is not None and rank_of(source) == rank_of(node.outputs[0]))
        or (kind == "Flatten" and rank_of(source) == 2 and node.attributes.get_int("axis", 1) == 1)
    )
    return source if same else None


def _neutral(node: ir.Node) -> ir.Value | None:
    """Return the other operand where one is the operator's neutral element and does not broadcast the other."""
    for position in (1, 0) if node.op_type in {"Add", "Mul"} else (1,):
        number, other = node.inputs[position], node.inputs[1 - position]
        rank, scalar_rank = rank_of(other), rank_of(number)
        if scalar_of(number) == _NEUTRAL[node.op_type] and (
            scalar_rank == 0 or (rank is not None and scalar_rank is not None and scalar_rank <= rank)
        ):
            return other
    return None


def _trains(node: ir.Node) -> bool:
    flag = node.inputs[2] if len(node.inputs) > 2 else None
    return flag is not None and scalar_of(flag) != 0.0


def _reshapes_to_itself(node: ir.Node) -> bool:
    """Return whether each size that is asked for is the input's, or at most one is left to the operator."""
    source, wanted = node.inputs[0], node.inputs[1]
    if source is None or source.shape is None or not is_constant(wanted):
        return False
    sizes = [int(size) for size in constant_of(wanted, "shape")]
    if len(sizes) != len(source.shape):
        return False
    copied = 0 if not node.attributes.get_int("allowzero", 0) else None
    open_ = [size for size, dim in zip(sizes, source.shape, strict=True) if size not in (copied, dim)]
    return open_ in ([], [-1])


def _expands_to_itself(node: ir.Node) -> bool:
    source, wanted = node.inputs[0], node.inputs[1]
    if source is None or source.shape is None or not is_constant(wanted):
        return False
    sizes = [int(size) for size in constant_of(wanted, "shape")]
    padded = sizes if len(sizes) >= len(source.shape) else [1] * (len(source.shape) - len(sizes)) + sizes
    return len(padded) == len(source.shape) and all(
        size in (1, dim) for size, dim in zip(padded, source.shape, strict=True)
    )


def _takes_everything(node: ir.Node) -> bool:
    """Return whether a Slice starts at 0, in steps of 1, and ends behind the last element of each axis."""
    source = node.inputs[0]
    given = [value for value in node.inputs[1:] if value is not None]
    if source is None or len(node.inputs) < 3 or not all(is_constant(value) for value in given):
        return False
    starts, ends = (constant_of(value, "range") for value in node.inputs[1:3])
    if starts.any() or (len(node.inputs) > 4 and (constant_of(node.inputs[4], "steps") != 1).any()):
        return False
    if (ends >= _FAR).all():
        return True
    axes = constant_of(node.inputs[3], "axes") if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if source.shape is None:
        return False
    named = range(len(ends)) if axes is None else [int(axis) for axis in axes]
    sizes = [source.shape[axis] for axis in named]
    return all(isinstance(size, int) and end >= size for size, end in zip(sizes, ends, strict=True))
