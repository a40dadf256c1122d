"""Of several changes of shape in a row only the last one counts."""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import Fusion, MatchResult, Phase, Stage, constant_of, is_constant, node_of, small

TITLE = "reshapes merged"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"


class _Twice(Fusion):
    """Reshape of what another operator reshaped."""

    remove_nodes = False  # what is between may have other readers

    def __init__(self, first: str) -> None:
        self.first = first

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        inner = getattr(op, self.first)(x, _allow_other_inputs=True, _outputs=["inner"])
        return op.Reshape(inner, shape, _outputs=["outer"])

    def check(self, context: Any, x: ir.Value, shape: ir.Value, inner: ir.Value, outer: ir.Value) -> MatchResult:  # noqa: ARG002
        result = MatchResult()
        if not is_constant(shape):
            return result.fail("the second shape is computed: a zero in it would mean a size of the first")
        if _sizes(shape, x, inner, node_of(outer)) is None:
            return result.fail("the second shape copies a size of the first that is not known")
        return result

    def rewrite(self, op: Any, x: ir.Value, shape: ir.Value, inner: ir.Value, outer: ir.Value) -> Any:
        node = node_of(outer)
        sizes = _sizes(shape, x, inner, node)
        wanted = constant_of(shape, "the shape")
        target = shape if sizes == wanted.tolist() else small(op, f"{shape.name}_sizes", wanted * 0 + sizes)
        return op.Reshape(x, target, **node.attributes)


class _Then(Fusion):
    """Another operator that reshapes what Reshape made, to a shape that is known but for one size."""

    remove_nodes = False

    def __init__(self, second: str) -> None:
        self.second = second

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        return getattr(op, self.second)(op.Reshape(x, shape), _allow_other_inputs=True, _outputs=["outer"])

    def check(self, context: Any, outer: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        result = MatchResult()
        return (
            result if _open_sizes(outer) is not None else result.fail("more than one size of the result is not known")
        )

    def rewrite(self, op: Any, x: ir.Value, shape: ir.Value, outer: ir.Value) -> Any:
        return op.Reshape(x, small(op, f"{shape.name}_sizes", np.array(_open_sizes(outer), np.int64)))


def _open_sizes(value: ir.Value) -> list[int] | None:
    """Return a value's sizes with -1 for one that is not known; None if there are more, or a size is 0."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


class _Undone(Fusion):
    """Squeeze of the axes that Unsqueeze added, or the other way round."""

    remove_nodes = False

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second

    def pattern(self, op: Any, x: Any, first_axes: Any, second_axes: Any) -> Any:
        return getattr(op, self.second)(getattr(op, self.first)(x, first_axes), second_axes)

    def check(self, context: Any, x: ir.Value, first_axes: ir.Value, second_axes: ir.Value) -> MatchResult:  # noqa: ARG002
        result = MatchResult()
        if not (is_constant(first_axes) and is_constant(second_axes)):
            return result.fail()
        first, second = (sorted(constant_of(axes, "axes").tolist()) for axes in (first_axes, second_axes))
        return result if first == second else result.fail()

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:  # noqa: ARG002
        return x


def _sizes(shape: ir.Value, x: ir.Value, inner: ir.Value, outer: ir.Node) -> list[int] | None:
    """Return the constant shape `outer` asks for, as asked of `x`; None if it copies a size of `inner` that x lacks."""
    wanted = [int(size) for size in constant_of(shape, "the shape")]
    if outer.attributes.get_int("allowzero", 0) or 0 not in wanted:
        return wanted
    if inner.shape is None or x.shape is None:
        return None
    sizes = []
    for axis, size in enumerate(wanted):
        copied = size or inner.shape[axis]
        if size or (axis < len(x.shape) and _equal(copied, x.shape[axis])):
            sizes.append(size)
        elif isinstance(copied, int):
            sizes.append(copied)
        else:
            return None
    return sizes


def _equal(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Return whether two sizes are known to be the same; two without a name are not."""
    return a == b and (isinstance(a, int) or a.value is not None)


RULES = (
    *(_Twice.rule(first) for first in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")),
    _Undone.rule("Unsqueeze", "Squeeze"),
    _Undone.rule("Squeeze", "Unsqueeze"),
    *(_Then.rule(second) for second in ("Flatten", "Squeeze", "Unsqueeze")),
)
