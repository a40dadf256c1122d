"""What rules for normalizations share: x / sqrt(mean(x^2) + epsilon) in the ways that exporters write it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import (
    Fusion,
    MatchFailureError,
    MatchResult,
    constant_of,
    is_constant,
    node_of,
    other_use,
    rank_of,
    scalar_of,
    small,
)
from edgec.fuse.terms import maker


@dataclass(frozen=True)
class Normal:
    """A value divided by the root of its mean square.

    Args:
        x: the value.
        epsilon: what is added to the mean.
        nodes: the operators.
    """

    x: ir.Value
    epsilon: float
    nodes: tuple[ir.Node, ...]


def normal_of(y: ir.Value) -> Normal | None:
    """Return what is normalized along its last axis to make a value; None if that is not how it is made.

    Raises:
        MatchFailureError: it is normalized in another way.
    """
    node = maker(y, "Div", "Mul")
    for position in (0, 1) if node is not None else ():
        assert node is not None
        x, divisor = node.inputs[position], node.inputs[1 - position]
        if x is None or divisor is None or (node.op_type == "Div" and position == 1):
            continue
        root = _root(divisor) if node.op_type == "Div" else _inverse_root(divisor)
        found = None if root is None else _mean_square(root[0], x)
        if found is not None and root is not None:
            return Normal(x, found[0], (node, *root[1], *found[1]))
    return None


def size_of(x: ir.Value) -> int:
    """Return the size of the last axis.

    Raises:
        MatchFailureError: it is not known.
    """
    size = x.shape[-1] if rank_of(x) else None  # type: ignore[index]  # the rank is known
    if not isinstance(size, int):
        raise MatchFailureError("the size of the last axis is not known", x)
    return size


def mean_of(value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    """Return what a value is the mean of, along the last axis.

    Raises:
        MatchFailureError: the mean is along other axes, or they are not kept.
    """
    node = maker(value, "ReduceMean")
    x = None if node is None else node.inputs[0]
    if node is None or x is None:
        return None
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    rank = rank_of(x)
    last = rank is not None and is_constant(axes) and constant_of(axes, "axes").tolist() in ([-1], [rank - 1])
    if not last or not node.attributes.get_int("keepdims", 1):
        raise MatchFailureError("the mean is not along the last axis alone", node)
    return x, node


def _root(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Return what a value is the square root of."""
    node = maker(value, "Sqrt", "Pow")
    if node is None or node.inputs[0] is None or (node.op_type == "Pow" and scalar_of(node.inputs[1]) != 0.5):
        return None
    return node.inputs[0], (node,)


def _inverse_root(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Return what a value is one divided by the square root of."""
    node = maker(value, "Reciprocal", "Div", "Pow")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Pow":
        return (node.inputs[0], (node,)) if scalar_of(node.inputs[1]) == -0.5 else None
    divisor = node.inputs[-1] if node.op_type == "Reciprocal" or scalar_of(node.inputs[0]) == 1 else None
    root = None if divisor is None else _root(divisor)
    return None if root is None else (root[0], (node, *root[1]))


def _mean_square(value: ir.Value, x: ir.Value) -> tuple[float, tuple[ir.Node, ...]] | None:
    """Return epsilon if a value is the mean of the squares of `x` plus that."""
    adder = maker(value, "Add")
    for position in (0, 1) if adder is not None else ():
        assert adder is not None
        epsilon, other = scalar_of(adder.inputs[position]), adder.inputs[1 - position]
        if epsilon is None or not _is_square(_averaged(other), x):
            continue
        mean = mean_of(other)
        assert mean is not None
        return epsilon, (adder, mean[1], node_of(mean[0]))
    return None


def _averaged(value: ir.Value | None) -> ir.Value | None:
    """Return what ReduceMean averages, whatever its axes."""
    node = maker(value, "ReduceMean")
    return None if node is None else node.inputs[0]


def _is_square(value: ir.Value | None, x: ir.Value) -> bool:
    """Return whether a value is x times x."""
    node = maker(value, "Pow", "Mul")
    if node is None or node.inputs[0] is not x:
        return False
    return node.inputs[1] is x if node.op_type == "Mul" else scalar_of(node.inputs[1]) == 2


class Arithmetic(Fusion):
    """A normalization as the arithmetic that it is; it gets weights of one.

    Args:
        root: the operator that divides, Div or Mul.
        read: says what is normalized to make a value.
        operator: the normalization.
    """

    remove_nodes = False  # `check` knows the nodes better than the pattern, which is only where they end

    def __init__(self, root: str, read: Callable[[ir.Value], Normal | None], operator: str) -> None:
        self.root, self.read, self.operator = root, read, operator

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        """Match where the arithmetic ends."""
        return getattr(op, self.root)(a, b, _outputs=["y"])

    def check(self, context: Any, y: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        """Take what `read` takes, if nobody reads what is inside."""
        result = MatchResult()
        found = self.read(y)
        if found is None:
            return result.fail()
        if found.x.dtype is None:
            return result.fail("its type is not known")
        size_of(found.x)
        reason = other_use(found.nodes, [y])
        return result.fail(reason) if reason else result

    def rewrite(self, op: Any, y: ir.Value, **_: Any) -> Any:
        """Make the operator, with a weight of ones."""
        found = self.read(y)
        assert found is not None
        assert found.x.dtype is not None
        size = size_of(found.x)
        one = small(op, f"ones_{size}", np.ones(size, found.x.dtype.numpy()))
        return op.op(self.operator, found.x, one, axis=-1, epsilon=found.epsilon)


class Affine(Fusion):
    """A normalization and what it is multiplied with, or what is added to it.

    Args:
        operator: LayerNormalization, or RMSNormalization, which nothing is added to.
        arithmetic: Mul or Add.
    """

    def __init__(self, operator: str, arithmetic: str) -> None:
        self.operator, self.arithmetic = operator, arithmetic

    def pattern(self, op: Any, x: Any, number: Any) -> Any:
        """Match it with the constant in second place."""
        normal = getattr(op, self.operator)(x, _allow_other_inputs=True, _outputs=["normal"])
        return getattr(op, self.arithmetic)(normal, number)

    def check(self, context: Any, x: ir.Value, number: ir.Value, normal: ir.Value) -> MatchResult:  # noqa: ARG002
        """Take constants with one number for each element of the last axis, or one for all."""
        result, node = MatchResult(), node_of(normal)
        if not is_constant(number) or len(node.outputs) > 1:
            return result.fail()
        for value in node.inputs[1:]:
            constant_of(value, "what it multiplies with or adds")
        shape = tuple(number.const_value.shape.numpy()) if number.const_value is not None else ()
        if node.attributes.get_int("axis", -1) not in {-1, (rank_of(x) or 0) - 1}:
            return result.fail("it normalizes along several axes")
        if any(size != 1 for size in shape[:-1]) or (shape and shape[-1] not in {1, size_of(x)}):
            return result.fail("the constant is not one number for each element of the last axis")
        if rank_of(x) is None or len(shape) > (rank_of(x) or 0):
            return result.fail("the constant has more axes than what it is multiplied with")
        return result

    def rewrite(self, op: Any, x: ir.Value, number: ir.Value, normal: ir.Value) -> Any:
        """Make new weights; a number that nothing changes stays the constant that it was."""
        node = node_of(normal)
        scale, offset = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if self.arithmetic == "Mul":
            scale = _combined(op, scale, number, np.multiply)
            offset = None if offset is None else _combined(op, offset, number, np.multiply)
        else:
            offset = number if offset is None else _combined(op, offset, number, np.add)
        weights = [_widened(op, value, size_of(x)) for value in (scale, offset) if value is not None]
        return op.op(self.operator, x, *weights, **node.attributes)


def _combined(op: Any, old: ir.Value | None, number: ir.Value, arithmetic: Any) -> ir.Value:
    """Return what arithmetic makes of a weight and a constant: the constant itself, if the weight is all ones."""
    a, b = constant_of(old, "the weight"), constant_of(number, "the constant")
    if arithmetic is np.multiply and b.size == a.size and (a == 1).all():
        return number
    assert old is not None
    return small(op, str(old.name), arithmetic(a, b.reshape(-1)).astype(a.dtype))


def _widened(op: Any, value: ir.Value, size: int) -> ir.Value:
    """Return a weight as one number for each element of the last axis."""
    data = constant_of(value, "the weight")
    return (
        value if data.shape == (size,) else small(op, str(value.name), np.broadcast_to(data.reshape(-1), size).copy())
    )
