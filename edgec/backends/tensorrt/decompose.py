"""Operators of opset 23 as TensorRT takes them.

TensorRT 11 and TensorRT-RTX take RotaryEmbedding and RMSNormalization as they are, and Attention without a cache: its
past is joined outside. TensorRT 10.3 is older than all three, which are then written in operators of opset 21.

Source: the function bodies of these operators in the ONNX specification.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.graph.rewrite import array_of, constant


def decompose(graph: ir.Graph, *, old: bool) -> None:
    """Replace Attention, and for `old` also the other operators of opset 23; types stay what they are."""
    rewrite_operators(graph, _OLD if old else _NEW)


def rewrite_operators(graph: ir.Graph, rules: "Rules") -> None:
    """Replace each node whose operator has a rule, which writes other nodes and returns what they give in its place."""
    for node in list(graph):
        if node.op_type in rules:
            made = rules[node.op_type](Writer(graph, node), node)
            for before, after in zip(node.outputs, made, strict=False):
                after.name, before.name = before.name, f"{before.name}.replaced"
                after.type, after.shape = before.type, before.shape
                before.replace_all_uses_with(after, replace_graph_outputs=True)
            graph.remove(node, safe=True)


class Writer:
    """Writes nodes in front of the one that they replace; constants are shared by value."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node

    def op(self, part: str, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Write a node, and return its first output."""
        outputs = attributes.get("num_outputs", 1)
        node = ir.node(op_type, list(inputs), attributes, num_outputs=outputs, name=f"{self.node.name}.{part}")
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}.{index}" if index else str(node.name)
        node.metadata_props.update(self.node.metadata_props)
        self.graph.insert_before(self.node, node)
        return node.outputs[0]

    def integers(self, *values: int) -> ir.Value:
        return constant(self.graph, f"integers.{'.'.join(map(str, values))}", np.array(values, np.int64))

    def integer(self, value: int) -> ir.Value:
        return constant(self.graph, f"integer.{value}", np.array(value, np.int64))

    def scalar(self, value: float) -> ir.Value:
        return constant(self.graph, f"scalar.{value:.9g}", np.array(value, np.float32))

    def heads(self, part: str, x: ir.Value | None, count: int) -> ir.Value:
        """Write (batch, sequence, count * dim) as (batch, count, sequence, dim)."""
        split = self.op(f"{part}_split", "Reshape", x, self.integers(0, 0, count, -1))
        return self.op(f"{part}_heads", "Transpose", split, perm=[0, 2, 1, 3])


def _queries_and_cache(w: Writer, node: ir.Node) -> tuple[ir.Value, list[ir.Value], list[ir.Value]]:
    """Write queries (batch, heads, sequence, dim), and all keys and values (batch, kv_heads, total, dim).

    Returns:
        The queries, keys and values as attention takes them, and as the cache keeps them.
    """
    heads, kv_heads = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    q = w.heads("q", node.inputs[0], heads)
    taken, kept = zip(*(_cached(w, node, index, kv_heads) for index in (1, 2)), strict=True)
    return q, list(taken), list(kept)


def _cached(w: Writer, node: ir.Node, index: int, kv_heads: int) -> tuple[ir.Value, ir.Value]:
    """Write a key or value behind its past; return it as attention takes it, and as the cache keeps it."""
    part, new, past = "_kv"[index], node.inputs[index], node.inputs[index + 3]
    rounding = new.producer() if new is not None else None
    if rounding is None or rounding.op_type != "DequantizeLinear":
        whole = w.op(f"{part}_all", "Concat", past, w.heads(part, new, kv_heads), axis=2)
        return whole, whole
    assert rounding.inputs[0] is not None
    assert rounding.inputs[1] is not None
    assert past is not None
    quantize = rounding.inputs[0].producer()
    assert quantize is not None
    name = str(quantize.name).removesuffix(".quantize")
    scales = constant(w.graph, f"{name}.scales", array_of(rounding.inputs[1]).reshape(kv_heads, -1)[:, 0])
    zeros = constant(w.graph, f"int8.zeros.{kv_heads}", np.zeros(kv_heads, np.int8))
    rounded = w.op(
        f"{name.rpartition('.')[2]}.quantize", "QuantizeLinear", w.heads(part, quantize.inputs[0], kv_heads), scales,
        zeros, axis=1,
    )  # fmt: skip
    past.type = ir.TensorType(ir.DataType.INT8)
    whole = w.op(f"{part}_all", "Concat", past, rounded, axis=2)
    return w.op(f"{part}_widened", "DequantizeLinear", whole, scales, zeros, axis=1), whole


def _fused_attention(w: Writer, node: ir.Node) -> list[ir.Value]:
    if node.attributes["softcap"].as_float():  # TensorRT's Attention has none
        return _attention(w, node)
    q, taken, present = _queries_and_cache(w, node)
    y = w.op("fused", "Attention", q, *taken, node.inputs[3], scale=node.attributes["scale"].as_float())
    return [joined_heads(w, y), *present]


def _attention(w: Writer, node: ir.Node) -> list[ir.Value]:
    heads, kv_heads = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    softcap = node.attributes["softcap"].as_float()
    q, taken, present = _queries_and_cache(w, node)
    k, v = (repeat(w, part, x, heads // kv_heads, heads) for part, x in zip("kv", taken, strict=True))
    # Scaling Q keeps the scores of float16 in range.
    q = w.op("q_scaled", "Mul", q, w.scalar(node.attributes["scale"].as_float()))
    scores = w.op("scores", "MatMul", q, w.op("k_transposed", "Transpose", k, perm=[0, 1, 3, 2]))
    if softcap:
        scores = w.op("capped_tanh", "Tanh", w.op("capped_div", "Div", scores, w.scalar(softcap)))
        scores = w.op("capped", "Mul", scores, w.scalar(softcap))
    # The lowest float16: minus infinity less minus infinity would be no number.
    scores = w.op("masked", "Where", node.inputs[3], scores, w.scalar(-65504.0))
    y = joined_heads(w, w.op("mixed", "MatMul", w.op("weights", "Softmax", scores, axis=-1), v))
    # Adding nothing keeps this apart from the output projection, whose weight TensorRT otherwise widens first.
    return [w.op("apart", "Add", y, w.scalar(0.0)), *present]


def joined_heads(w: Writer, x: ir.Value) -> ir.Value:
    """Write (batch, heads, sequence, dim) as (batch, sequence, heads * dim)."""
    return w.op("joined", "Reshape", w.op("rows", "Transpose", x, perm=[0, 2, 1, 3]), w.integers(0, 0, -1))


def repeat(w: Writer, part: str, x: ir.Value, times: int, heads: int) -> ir.Value:
    """Write (batch, kv_heads, total, dim) with each head `times` times."""
    if times == 1:
        return x
    each = w.op(f"{part}_apart", "Unsqueeze", x, w.integers(2))
    each = w.op(f"{part}_each", "Expand", each, w.integers(1, 1, times, 1, 1))
    total_and_dim = w.op(f"{part}_size", "Shape", x, start=2)
    shape = w.op(f"{part}_shape", "Concat", w.integers(0, heads), total_and_dim, axis=0)
    return w.op(f"{part}_repeated", "Reshape", each, shape)


def rotary(w: Writer, node: ir.Node) -> list[ir.Value]:
    """Write a RotaryEmbedding that is not interleaved."""
    x, cos, sin = node.inputs[:3]
    positions = node.inputs[3] if len(node.inputs) > 3 else None
    assert x is not None
    assert cos is not None
    assert cos.shape is not None
    is_joined = x.shape is None or len(x.shape) == 3
    if is_joined:
        x = w.heads("x", x, node.attributes["num_heads"].as_int())
    rest = None
    if node.attributes.get_int("rotary_embedding_dim", 0):
        turned = 2 * int(cos.shape[-1])  # type: ignore[arg-type]
        x, rest = (
            w.op(f"x_{part}", "Slice", x, w.integers(start), w.integers(end), w.integers(3))
            for part, start, end in (("turned", 0, turned), ("rest", turned, np.iinfo(np.int64).max))
        )
    tables = []
    for part, table in (("cos", cos), ("sin", sin)):
        rows = table if positions is None else w.op(part, "Gather", table, positions, axis=0)
        tables.append(w.op(f"{part}_rows", "Unsqueeze", rows, w.integers(1)))
    halves = w.op("halves", "Split", x, axis=3, num_outputs=2).producer()
    assert halves is not None
    first, second = halves.outputs
    (c, s) = tables
    real = w.op("real", "Sub", w.op("first_cos", "Mul", first, c), w.op("second_sin", "Mul", second, s))
    imaginary = w.op("imaginary", "Add", w.op("first_sin", "Mul", first, s), w.op("second_cos", "Mul", second, c))
    y = w.op("rotated", "Concat", real, imaginary, *([] if rest is None else [rest]), axis=3)
    return [joined_heads(w, y) if is_joined else y]


def rms(w: Writer, node: ir.Node) -> list[ir.Value]:
    """Write an RMSNormalization."""
    x, weight = node.inputs[:2]
    axis = node.attributes.get_int("axis", -1)
    if axis >= 0:
        assert x is not None
        assert x.shape is not None
        axis -= len(x.shape)
    axes = w.integers(*range(axis, 0))
    epsilon = constant(
        w.graph, f"{node.name}.epsilon", np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
    )
    mean = w.op("mean", "ReduceMean", w.op("square", "Mul", x, x), axes, keepdims=1)
    root = w.op("root", "Sqrt", w.op("shifted", "Add", mean, epsilon))
    return [w.op("scaled", "Mul", w.op("normed", "Div", x, root), weight)]


Rules = Mapping[str, Callable[[Writer, ir.Node], list[ir.Value]]]
"""Operator -> what writes others in its place, and returns what they give."""

_NEW: Rules = {"Attention": _fused_attention}
_OLD: Rules = {"Attention": _attention, "RotaryEmbedding": rotary, "RMSNormalization": rms}
