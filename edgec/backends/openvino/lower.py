"""Canonical graph -> OpenVINO model with a stateful key-value cache, written operator by operator.

OpenVINO's own ONNX frontend reads the canonical graph too, but what it makes of Attention and of blocked integers is
not what the plugins fuse; written directly, each of them becomes one kernel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov
from openvino import opset13 as op

from edgec.backends.openvino.attention import (
    attend,
    index,
    integers,
    join_heads,
    remember,
    rotate,
    rotation_tables,
    split_heads,
)  # fmt: skip
from edgec.backends.openvino.weights import Weights
from edgec.graph.rewrite import array_of
from edgec.graph.siblings import matmul_siblings, matrix_size

_ELEMENTWISE: dict[str, Callable[..., ov.Node]] = {
    "Add": op.add,
    "Sub": op.subtract,
    "Mul": op.multiply,
    "Div": op.divide,
    "Tanh": op.tanh,
    "Sigmoid": op.sigmoid,
    "Relu": op.relu,
    "And": op.logical_and,
    "Or": op.logical_or,
    "Equal": op.equal,
    "Greater": op.greater,
    "LessOrEqual": op.less_equal,
}
_TYPES = {ir.DataType.BOOL: ov.Type.boolean, ir.DataType.FLOAT: ov.Type.f32, ir.DataType.INT64: ov.Type.i64}
# They are written where their result is used: into the pattern of a weight, or in front of attention.
_WRITTEN_LATER = frozenset({"DequantizeLinear", "RotaryEmbedding", "Transpose"})


def lower(model: ir.Model, weights: Weights) -> ov.Model:
    """Return the OpenVINO model of a canonical decoder graph.

    Its inputs are `input_ids`, `attention_mask`, `position_ids` (int64) and `beam_idx` (int32), which says what row of
    the cache each row continues; its output is `logits` (batch, sequence, vocab) float32.

    Args:
        model: the canonical graph; not changed.
        weights: makes the constants; it must outlive the model, which reads from its memory.
    """
    return _Writer(model, weights).write()


class _Writer:
    def __init__(self, model: ir.Model, weights: Weights) -> None:
        self.graph = model.graph
        self.weights = weights
        self.values: dict[str, ov.Output] = {}
        self.rotations: dict[str, tuple[ov.Node, ov.Node]] = {}
        self.masks: dict[str, ov.Node] = {}
        self.sinks: list[ov.Node] = []
        self.siblings = {node: family for family in matmul_siblings(model.graph) for node in family}

    def write(self) -> ov.Model:
        parameters = [
            _parameter(v.name, ov.Type.i64, 2) for v in self.graph.inputs if not str(v.name).startswith("past")
        ]
        beam_idx = _parameter("beam_idx", ov.Type.i32, 1)
        self.values = {p.get_friendly_name(): p.output(0) for p in parameters}
        self.beam_idx = beam_idx.output(0)
        self.batch = op.gather(op.shape_of(self.values["input_ids"]), integers(0), index(0))
        for node in self.graph:
            if _widens_activation(node):  # what is written for its QuantizeLinear gives floats
                self.values[str(node.outputs[0].name)] = self.value(node.inputs[0])
            elif node.op_type not in _WRITTEN_LATER and not _widens_weight(node):
                self._write(node)
        logits = op.result(self.values["logits"])
        logits.get_output_tensor(0).set_names({"logits"})
        # A position that nothing reads stays an input: openvino_genai always passes it.
        return ov.Model([logits], self.sinks, [*parameters, beam_idx], str(self.graph.name))

    def _write(self, node: ir.Node) -> None:
        if str(node.outputs[0].name) in self.values:  # written with a sibling
            return
        if node.op_type in _ELEMENTWISE:
            made = _ELEMENTWISE[node.op_type](*(self.value(v) for v in node.inputs))
        else:
            made = getattr(self, f"_{node.op_type.lower()}")(node)
        made.set_friendly_name(str(node.name))
        self.values.setdefault(str(node.outputs[0].name), made.output(0))

    def value(self, value: ir.Value | None) -> ov.Output:
        assert value is not None
        name = str(value.name)
        if name not in self.values:
            constant = op.constant(array_of(value))
            constant.set_friendly_name(name)
            self.values[name] = constant.output(0)
        return self.values[name]

    def _matmul(self, node: ir.Node) -> ov.Node:
        """Write a matmul; those that read the same input are one wide one, whose weights stream in one sweep."""
        siblings = self.siblings.get(node, [node])
        x = self.value(node.inputs[0])
        weight, padding = self.weights.get(*(n.inputs[1] for n in siblings if n.inputs[1] is not None))
        if padding:
            x = op.pad(x, integers(0, 0, 0), integers(0, 0, padding), "constant", np.float32(0)).output(0)
        wide = op.matmul(x, weight, transpose_a=False, transpose_b=True)
        if len(siblings) == 1:
            return wide
        wide.set_friendly_name("+".join(str(n.name) for n in siblings))
        widths = integers(*(matrix_size(n)[1] for n in siblings))
        parts = op.variadic_split(wide, index(2), widths)
        for sibling, part in zip(siblings, parts.outputs(), strict=True):
            self.values[str(sibling.outputs[0].name)] = part
        return parts

    def _quantizelinear(self, node: ir.Node) -> ov.Node:
        scale = array_of(node.inputs[1]).item()  # type: ignore[arg-type]
        low, high = np.float32(-128 * scale), np.float32(127 * scale)
        return op.fake_quantize(self.value(node.inputs[0]), low, high, low, high, 256)

    def _gather(self, node: ir.Node) -> ov.Node:
        table, ids = node.inputs
        assert table is not None
        if str(table.name) in self.values or not _is_table(table):
            return op.gather(self.value(table), self.value(ids), index(node.attributes.get_int("axis", 0)))
        weight, padding = self.weights.get(table)
        rows = op.gather(weight, self.value(ids), index(0))
        if not padding:
            return rows
        width = weight.get_output_partial_shape(0)[1].get_length() - padding
        return op.slice(rows, integers(0), integers(width), integers(1), integers(2))

    def _attention(self, node: ir.Node) -> ov.Node:
        heads, kv_heads = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
        q, k = self._head_vectors(node.inputs[0], heads), self._head_vectors(node.inputs[1], kv_heads)
        v = split_heads(self.value(node.inputs[2]), kv_heads)
        wholes = []
        for new, past, present in zip((k, v), node.inputs[4:6], node.outputs[1:3], strict=True):
            assert past is not None
            whole, sink = remember(f"{past.name}{present.name}", new, self.batch, self.beam_idx)
            wholes.append(whole)
            self.sinks.append(sink)
        y = attend(
            q,
            wholes[0],
            wholes[1],
            self.mask(node.inputs[3]),
            heads=heads,
            scale=node.attributes["scale"].as_float(),
            softcap=node.attributes["softcap"].as_float(),
        )
        return join_heads(y, heads * v.get_output_partial_shape(0)[3].get_length())

    def mask(self, value: ir.Value | None) -> ov.Node:
        """Return the mask as what is added to scores, written once; for booleans attention has no fast kernel."""
        name = str(value.name) if value is not None else ""
        if name not in self.masks:
            self.masks[name] = op.select(self.value(value), np.float32(0), np.float32(-65504))
        return self.masks[name]

    def _head_vectors(self, value: ir.Value | None, heads: int) -> ov.Node:
        """Return queries or keys (batch, heads, sequence, dim), rotated where the graph rotates them."""
        assert value is not None
        node = value.producer()
        if node is None or node.op_type != "RotaryEmbedding":
            return split_heads(self.value(value), heads)
        x, cos, sin, positions = node.inputs
        assert cos is not None
        key = str(cos.name)
        if key not in self.rotations:
            tables = self.value(cos), self.value(sin)
            self.rotations[key] = rotation_tables(*tables, self.value(positions))
        turned = 2 * self.value(cos).get_partial_shape()[1].get_length()
        return rotate(split_heads(self.value(x), heads), *self.rotations[key], turned)

    def _rmsnormalization(self, node: ir.Node) -> ov.Node:
        x, weight = self.value(node.inputs[0]), self.value(node.inputs[1])
        mean = op.reduce_mean(op.power(x, np.float32(2)), integers(-1), keep_dims=True)
        root = op.sqrt(op.add(mean, np.float32(node.attributes["epsilon"].as_float())))
        return op.multiply(weight, op.multiply(x, op.divide(np.float32(1), root)))

    def _layernormalization(self, node: ir.Node) -> ov.Node:
        eps = node.attributes["epsilon"].as_float()
        x = op.mvn(self.value(node.inputs[0]), integers(-1), normalize_variance=True, eps=eps, eps_mode="INSIDE_SQRT")
        x = op.multiply(x, self.value(node.inputs[1]))
        return op.add(x, self.value(node.inputs[2])) if len(node.inputs) > 2 and node.inputs[2] is not None else x

    def _gelu(self, node: ir.Node) -> ov.Node:
        tanh = node.attributes.get_string("approximate", "none") == "tanh"
        return op.gelu(self.value(node.inputs[0]), "tanh" if tanh else "erf")

    def _reshape(self, node: ir.Node) -> ov.Node:
        return op.reshape(self.value(node.inputs[0]), self.value(node.inputs[1]), special_zero=True)

    def _unsqueeze(self, node: ir.Node) -> ov.Node:
        return op.unsqueeze(self.value(node.inputs[0]), self.value(node.inputs[1]))

    def _shape(self, node: ir.Node) -> ov.Node:
        return op.shape_of(self.value(node.inputs[0]))

    def _range(self, node: ir.Node) -> ov.Node:
        return op.range(*(self.value(v) for v in node.inputs), "i64")

    def _cast(self, node: ir.Node) -> ov.Node:
        return op.convert(self.value(node.inputs[0]), _TYPES[ir.DataType(node.attributes["to"].as_int())])


def _parameter(name: Any, dtype: ov.Type, rank: int) -> ov.Node:
    made = op.parameter([-1] * rank, dtype)
    made.set_friendly_name(name)
    made.get_output_tensor(0).set_names({name})
    return made


def _widens_weight(node: ir.Node) -> bool:
    """Say whether `node` is the Cast behind a weight that is stored as float16."""
    return node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _widens_activation(node: ir.Node) -> bool:
    """Say whether `node` turns the integers of an activation into floats."""
    value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    return value is not None and value.producer() is not None


def _is_table(value: ir.Value) -> bool:
    return value.is_initializer() or value.producer() is not None
