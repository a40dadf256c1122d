"""Products as what they are, in whatever order and with whatever operators an exporter wrote them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgec.fuse.rule import scalar_of

_POWERS = (1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Product:
    """A number times some values.

    Args:
        number: the product of all constants of one element.
        factors: everything else, as often as it is multiplied.
        nodes: the operators that multiply.
    """

    number: float
    factors: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...] = ()

    def is_of(self, number: float, *factors: ir.Value) -> bool:
        """Return whether this is `number`, to five digits, times these factors in any order."""
        return close(self.number, number) and sorted(map(id, self.factors)) == sorted(map(id, factors))


def close(number: float | None, wanted: float) -> bool:
    """Return whether a constant is what someone wrote for a number, to five digits."""
    return number is not None and math.isclose(number, wanted, rel_tol=1e-5)


def maker(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """Return the node that makes a value, if it is one of these standard operators."""
    node = None if value is None else value.producer()
    return node if node is not None and not node.domain and node.op_type in kinds else None


def product(value: ir.Value, whole: Sequence[ir.Value] = ()) -> Product:
    """Return what is multiplied to make a value; those in `whole` are not taken apart."""
    if (number := scalar_of(value)) is not None:
        return Product(number, ())
    node = None if value in whole else maker(value, "Mul", "Div", "Pow")
    if node is None or None in node.inputs:
        return Product(1.0, (value,))
    first, second = node.inputs
    assert first is not None
    assert second is not None
    number = scalar_of(second) or 0.0
    if node.op_type == "Mul":
        a, b = product(first, whole), product(second, whole)
        return Product(a.number * b.number, a.factors + b.factors, (node, *a.nodes, *b.nodes))
    if node.op_type == "Div" and number:
        a = product(first, whole)
        return Product(a.number / number, a.factors, (node, *a.nodes))
    if node.op_type == "Pow" and number in _POWERS:
        a = product(first, whole)
        return Product(a.number**number, a.factors * int(number), (node, *a.nodes))
    return Product(1.0, (value,))


def scaled(value: ir.Value) -> Product:
    """Return a value that is made by multiplying another one with constants as that product."""
    node = maker(value, "Mul", "Div")
    for position, other in enumerate(node.inputs) if node is not None else ():
        number = scalar_of(other)
        if node is None or not number or (node.op_type == "Div" and position == 0):
            continue
        source = node.inputs[1 - position]
        assert source is not None
        inner = scaled(source)
        factor = 1 / number if node.op_type == "Div" else number
        return Product(inner.number * factor, inner.factors, (node, *inner.nodes))
    return Product(1.0, (value,))


def plus(value: ir.Value | None, number: float) -> tuple[ir.Value, ir.Node] | None:
    """Return what a constant number is added to, and the node that adds it."""
    node = maker(value, "Add")
    for position in (0, 1) if node is not None else ():
        if node is not None and close(scalar_of(node.inputs[position]), number):
            other = node.inputs[1 - position]
            return None if other is None else (other, node)
    return None
