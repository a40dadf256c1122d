"""Lower Attention to GroupQueryAttention, with rotary embedding and packed Q, K, V inside the kernel.

The kernel masks by itself: causal, windowed, and rows as long as the attention mask says. So it takes prompts that are
padded on the right, where the canonical graph takes padding anywhere. Norms over each head of Q and K stay nodes: the
kernel has inputs for them, but refuses them on CPUs. An int8 cache has one scale for each head; the kernel takes one
for each number of a head.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.backends.onnx_cpu import CONTRIB
from edgec.graph.rewrite import array_of, constant, replace
from edgec.graph.tags import BLOCK, WINDOW

K_SCALE, V_SCALE = 12, 13
"""Where GroupQueryAttention takes the scales of an int8 cache."""


def lower_attention(graph: ir.Graph) -> None:
    """Replace every Attention, and the rotary embeddings before it, by GroupQueryAttention."""
    attentions = [node for node in graph if node.op_type == "Attention"]
    if not attentions:
        return
    lengths = _lengths(graph)
    for node in attentions:
        _lower(graph, node, lengths)


def _lengths(graph: ir.Graph) -> list[ir.Value]:
    """Write what the kernels need of the attention mask: last position of each row, and total length; int32."""
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    axis = constant(graph, "lengths.axis", np.array([1], np.int64))
    one = constant(graph, "lengths.one", np.array([1], np.int64))
    index = constant(graph, "lengths.index", np.array(1, np.int64))
    total = ir.node("ReduceSum", [mask, axis], {"keepdims": 0}, name="lengths.sum")
    last = ir.node("Sub", [total.outputs[0], one], name="lengths.last64")
    last32 = ir.node("Cast", [last.outputs[0]], {"to": ir.DataType.INT32}, name="lengths.last")
    shape = ir.node("Shape", [mask], name="lengths.shape")
    whole = ir.node("Gather", [shape.outputs[0], index], {"axis": 0}, name="lengths.total64")
    whole32 = ir.node("Cast", [whole.outputs[0]], {"to": ir.DataType.INT32}, name="lengths.total")
    first = graph[0]
    for node in (total, last, last32, shape, whole, whole32):
        node.outputs[0].name = node.name
        node.metadata_props[BLOCK] = "mask"
        graph.insert_before(first, node)
    return [last32.outputs[0], whole32.outputs[0]]


def _lower(graph: ir.Graph, node: ir.Node, lengths: list[ir.Value]) -> None:
    heads, kv_heads = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": node.attributes["scale"].as_float(),
        "softcap": node.attributes["softcap"].as_float(),
    }
    if WINDOW in node.metadata_props:
        attributes["local_window_size"] = int(node.metadata_props[WINDOW])
    q, k, v = node.inputs[:3]
    k, k_rounding = _before(k, "DequantizeLinear")
    v, v_rounding = _before(v, "DequantizeLinear")
    k, v = _before(k, "QuantizeLinear")[0], _before(v, "QuantizeLinear")[0]
    q, q_rope = _before(q, "RotaryEmbedding")
    k, k_rope = _before(k, "RotaryEmbedding")
    tables: list[ir.Value | None] = [None, None]
    if q_rope is not None and k_rope is not None:
        attributes["do_rotary"] = 1
        tables = list(q_rope.inputs[1:3])
    packed = _packed(q, k, v)
    qkv = [packed, None, None] if packed is not None else [q, k, v]
    inputs = [*qkv, *node.inputs[4:6], *lengths, *tables]
    if k_rounding is not None and v_rounding is not None:
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        scales = [_cache_scale(graph, rounding, kv_heads) for rounding in (k_rounding, v_rounding)]
        inputs += [*[None] * (K_SCALE - len(inputs)), *scales]
        for value in (*node.inputs[4:6], *node.outputs[1:3]):
            if value is not None:
                value.type = ir.TensorType(ir.DataType.INT8)
    new = ir.node("GroupQueryAttention", inputs, attributes, num_outputs=3, domain=CONTRIB, name=node.name)
    replace(graph, node, new)


def _cache_scale(graph: ir.Graph, rounding: ir.Node, kv_heads: int) -> ir.Value:
    """Return the scales of keys or values, (1, kv_heads, 1, head_dim)."""
    assert rounding.inputs[1] is not None
    scales = array_of(rounding.inputs[1]).reshape(1, kv_heads, 1, -1)
    return constant(graph, f"{str(rounding.name).removesuffix('.dequantize')}.cache_scale", scales)


def _before(value: ir.Value | None, op_type: str) -> tuple[ir.Value | None, ir.Node | None]:
    """Return the first input of the `op_type` that makes `value`, and that node; `value` and None where it is not."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type:
        return value, None
    return node.inputs[0], node


def _packed(q: ir.Value | None, k: ir.Value | None, v: ir.Value | None) -> ir.Value | None:
    """Return the wide matmul's output where Q, K and V are its three parts in this order."""
    split = q.producer() if q is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != [q, k, v]:
        return None
    return split.inputs[0]
