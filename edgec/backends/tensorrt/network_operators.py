"""Operators of opset 23 in networks as TensorRT takes them.

TensorRT-RTX has one kernel for Attention in float16 with heads of 16 to 256 numbers. With a mask of booleans it writes
seven more for each attention (measured, docs/design.md, section 6), and so masks are numbers that are added, made once
for all layers. Every other Attention is written as the operators that it consists of; and so are, for TensorRT before
11, RotaryEmbedding and RMSNormalization.

Source: the function bodies of these operators in the ONNX specification.
"""

import math
from functools import partial

import numpy as np
import onnx_ir as ir

from edgec.backends.tensorrt.decompose import Rules, Writer, joined_heads, repeat, rewrite_operators, rms, rotary
from edgec.backends.tensorrt.network_floats import MOVERS
from edgec.errors import PlanError
from edgec.graph.rewrite import constant, users

HIDDEN = -32768.0
"""What is added to scores that a mask hides: as good as minus infinity, and still in float16's range with them."""

_WITH_CACHE = 3
_KERNEL_SIZES = range(16, 257)
_HINT = "choose another backend of the target (`edgec targets` lists them), or export the model without it"

Masks = dict[ir.Value, ir.Value]


def lower_operators(model: ir.Model, *, half: bool, old: bool) -> None:
    """Replace what TensorRT does not take.

    Args:
        model: changed in place; its values have types and shapes where they are known.
        half: Attention will compute in float16, outside of the bodies of If and Loop.
        old: write operators of opset 21 only.

    Raises:
        PlanError: an operator does something that is not written here.
    """
    newer: Rules = {"RMSNormalization": rms, "RotaryEmbedding": _rotary} if old else {}
    for graph in model.graphs():
        fuses = half and not old and graph is model.graph
        rewrite_operators(graph, {**newer, "Attention": partial(_attention, fuses=fuses, masks={})})


def keep_apart(graph: ir.Graph) -> None:
    """Put a multiplication by 1 between products of quantized weights and what moves their numbers.

    TensorRT-RTX otherwise moves what cuts joined queries, keys and values apart up to the weights, and widens those
    first; it does not remove the multiplication, which costs nothing in the kernel that it is part of.
    """
    for node in list(graph):
        weight = node.inputs[1].producer() if node.op_type in ("MatMul", "Gemm") and node.inputs[1] else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        value = node.outputs[0]
        readers = users(value)
        if len(readers) == 1 and readers[0].op_type == "Add":  # its bias
            value = readers[0].outputs[0]
        movers = [(use.node, use.idx) for use in value.uses() if use.node.op_type in MOVERS | {"Gather"}]
        producer = value.producer()
        if movers and producer is not None:
            one = constant(graph, "scalar.1", np.array(1, np.float32))
            apart = ir.node("Mul", [value, one], name=f"{producer.name}.apart")
            apart.outputs[0].name = apart.name
            graph.insert_after(producer, apart)
            for mover, index in movers:
                mover.replace_input_with(index, apart.outputs[0])


def _attention(w: Writer, node: ir.Node, *, fuses: bool, masks: Masks) -> list[ir.Value]:
    q, k, v = _split_heads(w, node)
    causal, softcap = bool(node.attributes.get_int("is_causal", 0)), node.attributes.get_float("softcap", 0.0)
    mask, past_key, past_value = (node.inputs[i] if i < len(node.inputs) else None for i in (3, 4, 5))
    if len(node.outputs) > (1 if past_key is None else _WITH_CACHE) or (causal and past_key is not None):
        raise PlanError(
            "edgec writes no Attention for TensorRT that gives its scores, or is causal with a cache",
            where=str(node.name),
            hint=_HINT,
        )
    (heads, size), (kv_heads, value_size) = _sizes(node, 0), _sizes(node, 2)
    if past_key is not None:
        k, v = w.op("k_all", "Concat", past_key, k, axis=2), w.op("v_all", "Concat", past_value, v, axis=2)
    added = _added(w, mask, masks) if mask is not None and mask.dtype == ir.DataType.BOOL else mask
    scale = node.attributes.get_float("scale", 1 / math.sqrt(size))
    if fuses and not softcap and size == value_size and size in _KERNEL_SIZES:
        inputs = (q, k, v) if added is None else (q, k, v, added)
        y = w.op("fused", "Attention", *inputs, scale=scale, is_causal=int(causal))
    else:
        each = [repeat(w, part, x, heads // kv_heads, heads) for part, x in (("k", k), ("v", v))]
        masking = [added, _causal(w, q, k) if causal else None]
        y = _mixed(w, (q, each[0], each[1]), [mask for mask in masking if mask is not None], scale, softcap)
    return [joined_heads(w, y) if _is_joined(node) else y, k, v]


def _split_heads(w: Writer, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return queries, keys and values (batch, heads, sequence, size)."""
    q, k, v = (value for value in node.inputs[:3] if value is not None)
    if not _is_joined(node):
        return q, k, v
    heads, kv_heads = (_sizes(node, index)[0] for index in (0, 1))
    return w.heads("q", q, heads), w.heads("k", k, kv_heads), w.heads("v", v, kv_heads)


def _mixed(
    w: Writer, qkv: tuple[ir.Value, ir.Value, ir.Value], masks: list[ir.Value], scale: float, softcap: float
) -> ir.Value:
    """Write the attention of 4-D queries, keys and values."""
    q, k, v = qkv
    # Scaling Q keeps the scores of float16 in range.
    q = w.op("q_scaled", "Mul", q, w.scalar(scale))
    scores = w.op("scores", "MatMul", q, w.op("k_transposed", "Transpose", k, perm=[0, 1, 3, 2]))
    if softcap:
        scores = w.op("capped_tanh", "Tanh", w.op("capped_div", "Div", scores, w.scalar(softcap)))
        scores = w.op("capped", "Mul", scores, w.scalar(softcap))
    for index, mask in enumerate(masks):
        scores = w.op(f"masked_{index}", "Add", scores, mask)
    mixed = w.op("mixed", "MatMul", w.op("weights", "Softmax", scores, axis=-1), v)
    # Adding nothing keeps this apart from the output projection, whose weight TensorRT otherwise widens first.
    return w.op("apart", "Add", mixed, w.scalar(0.0))


def _added(w: Writer, mask: ir.Value, masks: Masks) -> ir.Value:
    """Return what a mask of booleans adds to scores; it is written in front of the first attention that it is for."""
    if mask not in masks:
        masks[mask] = w.op("mask", "Where", mask, w.scalar(0.0), w.scalar(HIDDEN))
    return masks[mask]


def _causal(w: Writer, q: ir.Value, k: ir.Value) -> ir.Value:
    """Write what (queries, keys) add to scores where no query sees the keys behind its own."""
    ranges = []
    for part, x, axis in (("causal_rows", q, 1), ("causal_columns", k, 0)):
        length = w.op(f"{part}_length", "Squeeze", w.op(f"{part}_shape", "Shape", x, start=2, end=3))
        numbers = w.op(f"{part}_range", "Range", w.integer(0), length, w.integer(1))
        ranges.append(w.op(part, "Unsqueeze", numbers, w.integers(axis)))
    seen = w.op("causal_seen", "GreaterOrEqual", *ranges)
    return w.op("causal", "Where", seen, w.scalar(0.0), w.scalar(HIDDEN))


def _rotary(w: Writer, node: ir.Node) -> list[ir.Value]:
    if node.attributes.get_int("interleaved", 0):
        raise PlanError(
            "edgec writes no interleaved RotaryEmbedding for TensorRT before 11", where=str(node.name), hint=_HINT
        )
    return rotary(w, node)


def _is_joined(node: ir.Node) -> bool:
    """Say whether queries are (batch, sequence, heads * size)."""
    q = node.inputs[0]
    assert q is not None
    assert q.shape is not None
    return len(q.shape) == 3


def _sizes(node: ir.Node, index: int) -> tuple[int, int]:
    """Return the number and the size of the heads of queries (0), keys (1) or values (2)."""
    value = node.inputs[index]
    assert value is not None
    assert value.shape is not None
    count = node.attributes["kv_num_heads" if index else "q_num_heads"].as_int() if _is_joined(node) else value.shape[1]
    size = value.shape[-1]
    if not isinstance(count, int) or not isinstance(size, int):
        raise PlanError("the number or size of an Attention's heads is not known", where=str(node.name), hint=_HINT)
    return count, size // count if _is_joined(node) else size
