"""Queries, keys and values of an attention as the operator takes them, and whether it does."""

from dataclasses import dataclass, replace

import onnx_ir as ir

from edgec.fuse.rule import MatchFailureError, rank_of
from edgec.fuse.surgery import same_size
from edgec.fuse.terms import maker

HEADS_APART = 4
"""Axes of values whose heads are not joined with the batch."""

_TAKEN = (0, 1, 2, 3)


@dataclass(frozen=True)
class Heads:
    """What an attention reads: (batch, heads, n, size), or (batch * heads, n, size).

    Args:
        query: for all query heads.
        key: as many heads, or fewer, each for several query heads in a row; `order` says how to transpose it first.
        order: see there.
        value: as many heads as keys have.
    """

    query: ir.Value
    key: ir.Value
    order: tuple[int, ...]
    value: ir.Value


def heads_of(query: ir.Value, transposed_key: ir.Value, value: ir.Value) -> Heads:
    """Return what attention reads, without transposing keys, and without repeating what query heads share.

    Raises:
        MatchFailureError: it does not take that.
    """
    key, order = _untransposed(transposed_key)
    repeated = Heads(query, key, order, value)
    heads = _ungrouped(repeated)
    _check(heads, shared=heads is not repeated)
    return heads


def _untransposed(value: ir.Value) -> tuple[ir.Value, tuple[int, ...]]:
    """Return what keys (..., size, n) are made of, and the order in which that is (..., n, size)."""
    rank = rank_of(value) or 0
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    node = maker(value, "Transpose")
    if node is not None and node.inputs[0] is not None:
        order = node.attributes.get_ints("perm", swapped)
        return node.inputs[0], tuple(order[axis] for axis in swapped)
    source = _untransposed_joined(value)
    return (value, swapped) if source is None else (source, tuple(range(rank)))


def _untransposed_joined(value: ir.Value) -> ir.Value | None:
    """Return keys that torch transposes after it joined batch and heads, and before it takes these apart again."""
    last = maker(value, "Reshape")
    middle = None if last is None else maker(last.inputs[0], "Transpose")
    first = None if middle is None else maker(middle.inputs[0], "Reshape")
    source = None if first is None else first.inputs[0]
    if middle is None or first is None or source is None or tuple(middle.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    outer, inner, joined = value.shape, source.shape, first.outputs[0].shape
    if outer is None or inner is None or joined is None or len(outer) != len(inner):
        return None
    turned = [*inner[:-2], inner[-1], inner[-2]]
    kept = all(same_size(a, b) for a, b in zip(inner[-2:], joined[-2:], strict=True))
    return source if kept and all(same_size(a, b) for a, b in zip(turned, outer, strict=True)) else None


def _ungrouped(heads: Heads) -> Heads:
    """Take keys and values as they were before they were repeated for the query heads that share them."""
    key, value = _unrepeated(heads.key), _unrepeated(heads.value)
    if heads.order != _TAKEN or key is None or value is None or key[1] != value[1]:
        return heads
    return replace(heads, key=key[0], value=value[0])


def _unrepeated(value: ir.Value) -> tuple[ir.Value, int] | None:
    """Return (batch, heads, n, size) of which a value repeats each head, and how often."""
    reshape = maker(value, "Reshape")
    expand = None if reshape is None else maker(reshape.inputs[0], "Expand")
    unsqueeze = None if expand is None else maker(expand.inputs[0], "Unsqueeze")
    source = None if unsqueeze is None else unsqueeze.inputs[0]
    if expand is None or unsqueeze is None or source is None:
        return None
    whole, wide, narrow, parts = (v.shape for v in (value, expand.outputs[0], unsqueeze.outputs[0], source))
    if whole is None or wide is None or narrow is None or parts is None or len(wide) != len(narrow):
        return None
    if (len(whole), len(wide), len(parts)) != (HEADS_APART, HEADS_APART + 1, HEADS_APART) or narrow[2] != 1:
        return None
    heads, times = parts[1], wide[2]
    if not (isinstance(heads, int) and isinstance(times, int)) or whole[1] != heads * times:
        return None
    # The last sizes that are not compared are equal because all others are.
    kept = [(wide[1], heads), (wide[0], parts[0]), (wide[3], parts[2]), (whole[0], parts[0]), (whole[3], parts[3])]
    return (source, times) if all(same_size(a, b) for a, b in kept) else None


def _check(heads: Heads, *, shared: bool) -> None:
    shapes = [value.shape for value in (heads.query, heads.key, heads.value)]
    if any(shape is None or len(shape) != len(heads.order) for shape in shapes):
        raise MatchFailureError("queries, keys and values are not known to have as many axes")
    query, key, value = (list(shape) for shape in shapes if shape is not None)
    key = [key[axis] for axis in heads.order]
    same = {
        "batches are the same": (query[0], key[0], value[0]),
        "queries and keys are of one size": (query[-1], key[-1]),
        "keys and values are as many": (key[-2], value[-2]),
    }
    if len(query) == HEADS_APART:
        shared = shared or key[1] == 1  # a product repeats a single head by itself
        same["heads are as many"] = (key[1], value[1]) if shared else (query[1], key[1], value[1])
    for what, sizes in same.items():
        if not all(same_size(sizes[0], size) for size in sizes):
            raise MatchFailureError(f"nothing shows that {what}: {', '.join(map(str, sizes))}")
