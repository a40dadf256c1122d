"""Attention that splits and joins heads itself, instead of behind and in front of reshapes and transposes.

Attention takes (batch, sequence, heads * size) as well as (batch, heads, sequence, size), if it is told how many heads
there are. Exporters write the second with a Reshape and a Transpose around each of its values.

Source: ONNX specification, operator Attention (opset 23).
"""

import onnx_ir as ir

from edgec.fuse.rule import Near, Phase, Stage, single_use
from edgec.graph.rewrite import users

TITLE = "attention splits and joins its heads"
STAGE: Stage = "canonical"
PHASE: Phase = "join"

_HEADS_FIRST = (0, 2, 1, 3)
_MANY_HEADS = "q_num_heads"


def apply(model: ir.Model, near: Near) -> list[str]:
    """Take reshapes and transposes around attention away; return the names of the nodes of attention."""
    changed = []
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Attention" and not node.domain]:
            if _MANY_HEADS in node.attributes:
                continue
            reason = _refusal(node)
            if reason is None:
                _change(graph, node)
                changed.append(str(node.name))
            elif reason:
                near(node, reason)
    return changed


def _refusal(node: ir.Node) -> str | None:
    """Return why heads stay outside; nothing is said where no transpose is there at all, None where they can go."""
    if not any(_transposed(value) for value in node.inputs[:3]):
        return ""
    if any(value is not None for value in node.inputs[4:6]) or any(out.uses() for out in node.outputs[1:]):
        return "it has a cache, which keeps heads apart"
    apart = next((value for value in node.inputs[:3] if _joined(value) is None), None)
    if apart is not None:
        return f"nothing shows that {apart.name} is a Reshape of its last axis and a Transpose"
    after = _after(node)
    if after is None:
        return f"{node.outputs[0].name} is not joined by a Transpose and a Reshape"
    if after.inputs[0] is None or not _splits(after.outputs[0], after.inputs[0]):
        return f"nothing shows that {after.name} joins the last two axes"
    return None


def _transposed(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Transpose" and _order(node) == _HEADS_FIRST


def _order(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()


def _joined(value: ir.Value | None) -> ir.Value | None:
    """Return what a value of attention is a split of: (batch, sequence, heads * size); None where that is not shown."""
    transpose = value.producer() if value is not None and _transposed(value) else None
    split = transpose.inputs[0] if transpose is not None else None
    reshape = split.producer() if split is not None else None
    if split is None or reshape is None or reshape.op_type != "Reshape" or reshape.inputs[0] is None:
        return None
    return reshape.inputs[0] if _splits(reshape.inputs[0], split) else None


def _splits(whole: ir.Value, parts: ir.Value) -> bool:
    """Say whether a Reshape between (a, b, c * d) and (a, b, c, d) touches the last axes alone.

    With c, d and c * d known, a * b is the same on both sides; so if one of both is, the other one is too.
    """
    if whole.shape is None or parts.shape is None or (len(whole.shape), len(parts.shape)) != (3, 4):
        return False
    last, heads, size = whole.shape[2], parts.shape[2], parts.shape[3]
    if not (isinstance(last, int) and isinstance(heads, int) and isinstance(size, int) and last == heads * size):
        return False
    return any(_same(whole.shape[axis], parts.shape[axis]) for axis in (0, 1))


def _same(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def _after(node: ir.Node) -> ir.Node | None:
    """Return the Reshape that joins what attention gives; None where there is none, or others read what is between."""
    if not single_use(node.outputs[0]):
        return None
    (transpose,) = users(node.outputs[0])
    if transpose.op_type != "Transpose" or _order(transpose) != _HEADS_FIRST or not single_use(transpose.outputs[0]):
        return None
    (reshape,) = users(transpose.outputs[0])
    return reshape if reshape.op_type == "Reshape" and reshape.graph is node.graph else None


def _change(graph: ir.Graph, node: ir.Node) -> None:
    query, key = node.inputs[0], node.inputs[1]
    reshape = _after(node)
    assert query is not None
    assert key is not None
    assert query.shape is not None
    assert key.shape is not None
    assert reshape is not None
    node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", int(query.shape[1]))  # type: ignore[arg-type]
    node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", int(key.shape[1]))  # type: ignore[arg-type]
    before = dict.fromkeys(value.producer() for value in node.inputs[:3] if value is not None)
    for index, value in enumerate(node.inputs[:3]):
        node.replace_input_with(index, _joined(value))
    old, new = reshape.outputs[0], node.outputs[0]
    transpose = reshape.inputs[0].producer() if reshape.inputs[0] is not None else None
    assert transpose is not None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([reshape, transpose], safe=True)
    new.name, new.shape = old.name, old.shape
    for made in before:
        if made is not None and not made.outputs[0].uses() and not made.outputs[0].is_graph_output():
            graph.remove(made, safe=True)
