"""Rotary embedding, the stateful key-value cache and attention, in the forms that OpenVINO's plugins fuse.

Source: the fusion passes of OpenVINO's CPU plugin (rotary embedding in halves; attention over a ReadValue/Assign cache
that is reordered by `beam_idx`), and openvino_genai, which takes the names of the inputs for granted.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo


def integers(*values: int) -> ov.Node:
    """Return a constant vector of int64."""
    return op.constant(np.array(values, np.int64))


def index(value: int) -> ov.Node:
    """Return a constant int64 scalar."""
    return op.constant(np.int64(value))


def split_heads(x: ov.Output, heads: int) -> ov.Node:
    """Return (batch, sequence, heads * dim) as (batch, heads, sequence, dim)."""
    dim = x.get_partial_shape()[2].get_length() // heads
    parts = op.reshape(x, integers(0, 0, heads, dim), special_zero=True)
    return op.transpose(parts, integers(0, 2, 1, 3))


def join_heads(x: ov.Node, width: int) -> ov.Node:
    """Return (batch, heads, sequence, dim) as (batch, sequence, heads * dim)."""
    return op.reshape(op.transpose(x, integers(0, 2, 1, 3)), integers(0, 0, width), special_zero=True)


def rotation_tables(cos: ov.Node, sin: ov.Node, positions: ov.Output) -> tuple[ov.Node, ov.Node]:
    """Return cos and sin (batch, 1, sequence, dim) of `positions` from tables (positions, dim / 2)."""

    def look_up(table: ov.Node) -> ov.Node:
        half = op.gather(table, positions, index(0))
        return op.unsqueeze(op.concat([half, half], axis=-1), integers(1))

    return look_up(cos), look_up(sin)


def rotate(x: ov.Node, cos: ov.Node, sin: ov.Node, dim: int) -> ov.Node:
    """Rotate the first `dim` dimensions of each head of x (batch, heads, sequence, head_dim), in halves."""
    head_dim = x.get_output_partial_shape(0)[3].get_length()
    rest = None
    if dim < head_dim:
        x, rest = op.variadic_split(x, index(3), integers(dim, head_dim - dim)).outputs()
    first, second = op.variadic_split(x, index(3), integers(dim // 2, dim // 2)).outputs()
    half_turned = op.concat([op.multiply(second, np.float32(-1)), first], axis=-1)
    turned = op.add(op.multiply(x, cos), op.multiply(half_turned, sin))
    return turned if rest is None else op.concat([turned, rest], axis=-1)


def remember(name: str, new: ov.Node, batch: ov.Node, beam_idx: ov.Output) -> tuple[ov.Node, ov.Node]:
    """Return the cache `name` with `new` (batch, heads, sequence, dim) at its end, and the node that keeps it.

    Row i of the past becomes what row `beam_idx[i]` was. At first the past is empty.
    """
    _, heads, _, dim = (d.get_length() if d.is_static else -1 for d in new.get_output_partial_shape(0))
    info = VariableInfo()
    info.variable_id, info.data_type = name, ov.Type.f32
    info.data_shape = ov.PartialShape([-1, heads, -1, dim])
    variable = Variable(info)
    empty = op.broadcast(np.float32(0), op.concat([batch, integers(heads, 0, dim)], axis=0))
    past = ov.op.read_value(empty, variable)
    past.set_friendly_name(name)
    whole = op.concat([op.gather(past, beam_idx, index(0)), new], axis=2)
    return whole, ov.op.assign(whole, variable)


def attend(q: ov.Node, k: ov.Node, v: ov.Node, mask: ov.Output, *, heads: int, scale: float, softcap: float) -> ov.Node:
    """Attend with q (batch, heads, sequence, dim) over k and v (batch, kv_heads, total, dim).

    The mask (batch, 1, sequence, total) is added to the scores. The soft cap is 0, or c where scores become
    c * tanh(scores / c); OpenVINO's attention has no such thing.
    """
    k, v = (_repeat(x, heads) for x in (k, v))
    if not softcap:
        return op.scaled_dot_product_attention(q, k, v, mask, np.float32(scale))
    scores = op.matmul(op.multiply(q, np.float32(scale)), k, transpose_a=False, transpose_b=True)
    scores = op.multiply(op.tanh(op.divide(scores, np.float32(softcap))), np.float32(softcap))
    return op.matmul(op.softmax(op.add(scores, mask), axis=-1), v, transpose_a=False, transpose_b=False)


def _repeat(x: ov.Node, heads: int) -> ov.Node:
    """Return key or value heads repeated, so that there are `heads` of them."""
    _, kv_heads, _, dim = x.get_output_partial_shape(0)
    times = heads // kv_heads.get_length()
    if times == 1:
        return x
    each = op.broadcast(op.unsqueeze(x, integers(2)), integers(1, 1, times, 1, 1), broadcast_spec="BIDIRECTIONAL")
    return op.reshape(each, integers(0, heads, -1, dim.get_length()), special_zero=True)
