"""Attention from what exporters write for it: softmax(scale * queries keys^T + mask) values.

The scale may be anywhere, the mask a number that is added or a choice between scores and a very low number; keys and
values that are repeated for groups of query heads are taken as they were. Heads are an axis of their own, or are
joined with the batch. A mask that holds for all queries is repeated, for ONNX Runtime takes no other. Whether a mask is
causal is not looked for. Past keys and values stay what is concatenated in front.

For a query that may see no key torch's own attention gives 0, and so does Attention, if the mask says so with
booleans or minus infinity. Where a very low number is added, the mean of all values is the result; but ONNX Runtime
takes the lowest number of all for minus infinity, and so it is raised where it could occur.

Source: ONNX specification, operator Attention (opset 23).
"""

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_ir as ir

from edgec.fuse.emitting import Emitter
from edgec.fuse.heads import HEADS_APART, Heads, heads_of
from edgec.fuse.rule import MatchFailureError, Near, Phase, Stage, node_of, other_use, rank_of, scalar_of
from edgec.fuse.scores import LOW, Mask, Scores, may_be_lowest, scores_of
from edgec.fuse.surgery import infer_shapes, same_size, tidy
from edgec.fuse.terms import maker, scaled

TITLE = "Attention from its products and softmax"
STAGE: Stage = "canonical"
PHASE: Phase = "join"

Sizes = list[int | ir.SymbolicDim]


@dataclass(frozen=True)
class _Found:
    """An attention.

    Args:
        scores: what the softmax is of.
        heads: queries, keys and values.
    """

    scores: Scores
    heads: Heads


def apply(model: ir.Model, near: Near) -> list[str]:
    """Write attention as one operator, and return the names of the nodes."""
    changed: list[ir.Node] = []
    for graph in model.graphs():
        for node in [node for node in graph if not node.domain]:
            if node.op_type == "Attention" and _take_scales(node):
                changed.append(node)
            if node.op_type != "MatMul":
                continue
            try:
                found = _read(node)
            except MatchFailureError as why:
                near(node, why.reason)
                continue
            if found is not None:
                changed.append(_write(node, found))
    if changed:
        tidy(model)
        infer_shapes(model)
    return [str(node.name) for node in changed]


def _take_scales(node: ir.Node) -> bool:
    """Make constants that queries and keys are multiplied with part of the scale; return whether there were any."""
    query, key = (scaled(value) for value in node.inputs[:2] if value is not None)
    size = query.factors[0].shape[-1] if query.factors[0].shape is not None else None
    heads = node.attributes.get_int("q_num_heads", 1)
    if not (query.nodes or key.nodes) or not isinstance(size, int) or len(node.outputs) > 1:
        return False
    scale = node.attributes.get_float("scale", 1 / math.sqrt(size / heads)) * query.number * key.number
    node.attributes["scale"] = ir.AttrFloat32("scale", scale)
    for position, product in enumerate((query, key)):
        node.replace_input_with(position, product.factors[0])
    return True


def _read(node: ir.Node) -> _Found | None:
    """Return the attention that ends with a product; None if none does.

    Raises:
        MatchFailureError: it is one that the operator does not say.
    """
    weights, value = node.inputs
    where = _guard(weights)
    softmax = maker(weights if where is None else where[0].inputs[2], "Softmax")
    if softmax is None:
        between = maker(weights, "Dropout", "Mul", "Where")
        if between is not None and any(maker(source, "Softmax") is not None for source in between.inputs):
            raise MatchFailureError(f"{between.op_type} stands between the softmax and the values")
        return None
    if softmax.inputs[0] is None or value is None or rank_of(value) not in (HEADS_APART - 1, HEADS_APART):
        raise MatchFailureError("the values are not known to have three or four axes")
    if softmax.attributes.get_int("axis", -1) not in (-1, (rank_of(value) or 0) - 1):
        raise MatchFailureError("the softmax is not along the last axis")
    if value.dtype != ir.DataType.FLOAT:
        raise MatchFailureError("it is not known to compute in float32")
    scores = scores_of(softmax.inputs[0])
    heads = heads_of(scores.queries, scores.keys, value)
    if reason := other_use((node, *(where or ()), softmax, *scores.nodes), node.outputs):
        raise MatchFailureError(reason)
    if where is not None and any(may_be_lowest(mask) for mask in scores.masks):
        raise MatchFailureError("queries that see no key give 0, and the mask is not known to hide keys completely")
    _check_masks(scores, _sizes(heads))
    return _Found(scores, heads)


def _guard(weights: ir.Value | None) -> tuple[ir.Node, ir.Node] | None:
    """Return the operators with which torch replaces weights by 0 where they are no number."""
    where = maker(weights, "Where")
    check = None if where is None else maker(where.inputs[0], "IsNaN")
    if where is None or check is None or scalar_of(where.inputs[1]) != 0 or where.inputs[2] is not check.inputs[0]:
        return None
    return where, check


def _sizes(heads: Heads) -> Sizes:
    """Return the sizes of the scores."""
    assert heads.query.shape is not None
    assert heads.value.shape is not None
    return [*heads.query.shape[:-1], heads.value.shape[-2]]


def _check_masks(scores: Scores, sizes: Sizes) -> None:
    for mask in scores.masks:
        shape = mask.value.shape
        if shape is None or len(shape) > len(sizes):
            raise MatchFailureError("the mask is not known to have as few axes as the scores")
        for size, whole in zip(reversed(shape), reversed(sizes), strict=False):
            differ = isinstance(size, int) and isinstance(whole, int) and size != whole
            if size != 1 and (differ or whole == 1):
                raise MatchFailureError(f"the mask has more elements than the scores: {size} for {whole}")


def _write(node: ir.Node, found: _Found) -> ir.Node:
    """Write an attention in place of the product that ends it, and return it."""
    emit, heads, kind = Emitter(node), found.heads, node.outputs[0].dtype or ir.DataType.FLOAT
    assert heads.value.shape is not None
    shape = [*_sizes(heads)[:-1], heads.value.shape[-1]]
    taken = heads.order == tuple(range(len(heads.order)))
    key = heads.key if taken else emit.op("Transpose", heads.key, perm=heads.order)
    inputs = [heads.query, key, heads.value, *_mask(emit, found, kind)]
    if len(shape) < HEADS_APART:
        one = emit.integers(1)
        inputs = [emit.op("Unsqueeze", x, one) for x in inputs]
    result = emit.op("Attention", *inputs, scale=found.scores.scale)
    attention = node_of(result)
    if len(shape) < HEADS_APART:
        result = emit.op("Squeeze", result, one)
    emit.finish(result, shape)
    return attention


def _mask(emit: Emitter, found: _Found, kind: ir.DataType) -> list[ir.Value]:
    """Return the masks as one, for each query and key; nothing if there is none."""
    heads, sizes, masks = found.heads, _sizes(found.heads), found.scores.masks
    if not masks:
        return []
    if len(masks) == 1 and masks[0].hidden == -math.inf:
        whole = masks[0].value if masks[0].keeps else emit.op("Not", masks[0].value)
    else:
        whole = reduce(lambda a, b: emit.op("Add", a, b), [_added(emit, mask, kind) for mask in masks])
    for shape in (list(mask.value.shape) for mask in masks if mask.value.shape is not None):
        if len(shape) == len(sizes) and all(same_size(a, b) for a, b in zip(shape[-2:], sizes[-2:], strict=True)):
            return [whole]
    ones = emit.integers(*[1] * (len(sizes) - 2))
    counts = (emit.size(value, len(sizes) - 2) for value in (heads.query, heads.value))
    return [emit.op("Expand", whole, emit.op("Concat", ones, *counts, axis=0))]


def _added(emit: Emitter, mask: Mask, kind: ir.DataType) -> ir.Value:
    """Return the numbers that a mask adds to scores."""
    if mask.hidden is None:
        lowest = emit.constant(np.array(LOW, kind.numpy())) if may_be_lowest(mask) else None
        return mask.value if lowest is None else emit.op("Max", mask.value, lowest)
    low = mask.hidden if mask.hidden == -math.inf else LOW
    kept, hidden = (emit.constant(np.array(number, kind.numpy())) for number in (0, low))
    result = emit.op("Where", mask.value, *((kept, hidden) if mask.keeps else (hidden, kept)))
    result.type = ir.TensorType(kind)
    return result
