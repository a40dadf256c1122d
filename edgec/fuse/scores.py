"""The scores of an attention: what a softmax reads, as a scaled product and all that is added to it."""

from dataclasses import dataclass, replace

import onnx_ir as ir

from edgec.fuse.rule import MatchFailureError, constant_of, is_constant, scalar_of
from edgec.fuse.terms import maker, scaled

LOW = -1e30
"""So much lower than scores that they are lost beside it: to choose it, or any number below, is to add it."""


@dataclass(frozen=True)
class Mask:
    """What is added to scores.

    Args:
        value: the numbers; or, if `hidden` is given, where scores are kept.
        hidden: a number of at most `LOW` that takes the place of other scores, or is added to them.
        keeps: whether `value` is true, and not false, where scores are kept.
    """

    value: ir.Value
    hidden: float | None = None
    keeps: bool = True


@dataclass(frozen=True)
class Scores:
    """A scaled product of queries (..., n, size) and keys (..., size, m), and what is added to it.

    Args:
        queries: without their scale.
        keys: likewise.
        scale: all scales together.
        masks: what is added.
        nodes: the operators; those that scale queries or keys are not among them, for others may read them.
    """

    queries: ir.Value
    keys: ir.Value
    scale: float
    nodes: tuple[ir.Node, ...]
    masks: tuple[Mask, ...] = ()


def scores_of(value: ir.Value) -> Scores:
    """Return what a softmax reads as scores.

    Raises:
        MatchFailureError: it is something else.
    """
    found = _read(value)
    if found is None:
        node = value.producer()
        made = "an input" if node is None else node.op_type
        raise MatchFailureError(f"the softmax is of no product of queries and keys, but of {made}", value)
    return found


def _read(value: ir.Value) -> Scores | None:
    outer = scaled(value)
    node = maker(outer.factors[0], "MatMul")
    if node is not None:
        queries, keys = (scaled(x) for x in node.inputs if x is not None)
        scale = outer.number * queries.number * keys.number
        return Scores(queries.factors[0], keys.factors[0], scale, (*outer.nodes, node))
    node = maker(value, "Add", "Where")
    if node is None:
        return None
    return _added(node) if node.op_type == "Add" else _chosen(node)


def _added(node: ir.Node) -> Scores | None:
    """Return scores that something is added to."""
    first, second = (x for x in node.inputs if x is not None)
    a, b = _read(first), _read(second)
    if a is not None and b is not None:
        raise MatchFailureError("the softmax is of a sum of several products", node)
    scores, mask = (a, second) if a is not None else (b, first)
    return None if scores is None else _with(scores, node, *_parts(mask))


def _chosen(node: ir.Node) -> Scores | None:
    """Return scores of which a number takes the place where a condition says so."""
    condition, *sides = (x for x in node.inputs if x is not None)
    numbers = [scalar_of(side) for side in sides]
    for keeps, scores, hidden in ((True, _read(sides[0]), numbers[1]), (False, _read(sides[1]), numbers[0])):
        if scores is None or hidden is None:
            continue
        if hidden > LOW:
            raise MatchFailureError(f"masked scores become {hidden:g}, which is not the same as to add it", node)
        return _with(scores, node, Mask(condition, hidden, keeps))
    return None


def _with(scores: Scores, node: ir.Node, *masks: Mask) -> Scores:
    return replace(scores, nodes=(node, *scores.nodes), masks=(*scores.masks, *masks))


def _parts(mask: ir.Value) -> list[Mask]:
    """Return a mask as its summands, if one of them is a choice; so that it is seen what hides scores."""
    node = maker(mask, "Add")
    parts = [part for value in node.inputs if value is not None for part in _parts(value)] if node is not None else []
    if any(part.hidden is not None for part in parts):
        return parts
    return [_choice(mask) or Mask(mask)]


def may_be_lowest(mask: Mask) -> bool:
    """Return whether nothing shows that numbers which are added are above the lowest there is."""
    if mask.hidden is not None:
        return False
    if is_constant(mask.value):
        return bool((constant_of(mask.value, "the mask") <= LOW).any())
    product = scaled(mask.value)
    return not product.nodes or abs(product.number) >= -LOW


def _choice(mask: ir.Value) -> Mask | None:
    """Return a mask that is 0 where scores are kept, and a very low number elsewhere."""
    node = maker(mask, "Where")
    condition, first, second = node.inputs if node is not None else (None, None, None)
    for keeps, kept, hidden in (
        (True, scalar_of(first), scalar_of(second)),
        (False, scalar_of(second), scalar_of(first)),
    ):
        if condition is not None and kept == 0 and hidden is not None and hidden <= LOW:
            return Mask(condition, hidden, keeps)
    return None
