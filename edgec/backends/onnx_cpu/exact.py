"""The twin of an artifact's graph that keeps activations in float32, for proofs; it is never shipped."""

from pathlib import Path

import onnx_ir as ir

from edgec.backends.onnx_cpu.attention import K_SCALE
from edgec.graph.integers import clipped, without_rounding
from edgec.graph.rewrite import replace, sweep
from edgec.graph.sparse import load, to_proto

EXACT_LEVEL = 1
# Weights that are dequantized in front of a MatMul would be fused into kernels that round activations.
EXACT_ENTRIES = {"session.disable_quant_qdq": "1"}


def exact_model(path: Path) -> bytes:
    """Return the graph at `path` with float32 activations in its integer matmuls; its weights stay in their files."""
    model = load(path)
    for node in list(model.graph):
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", EXACT_LEVEL)
        elif node.op_type == "MatMulIntegerToFloat":
            _multiply_floats(model.graph, node, _quantizer(node).inputs[0])
        elif node.op_type == "GroupQueryAttention":
            _keep_floats(node)
    sweep(model.graph)
    data: bytes = to_proto(model).SerializeToString()
    return data


def exact_network(path: Path) -> bytes:
    """Return the graph of a network at `path` without what rounds activations; its weights stay in their files."""
    model = load(path)
    for node in list(model.graph):
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", EXACT_LEVEL)
        elif node.op_type == "MatMulIntegerToFloat":
            quantize = _quantizer(node)
            is_static = quantize.op_type == "QuantizeLinear"
            _multiply_floats(model.graph, node, clipped(model.graph, quantize) if is_static else quantize.inputs[0])
    without_rounding(model.graph)
    data: bytes = to_proto(model).SerializeToString()
    return data


def _quantizer(node: ir.Node) -> ir.Node:
    """Return what rounds the left side of a MatMulIntegerToFloat."""
    quantize = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert quantize is not None
    return quantize


def _multiply_floats(graph: ir.Graph, node: ir.Node, left: ir.Value | None) -> None:
    """Put a MatMul of `left` and of the dequantized weight where the MatMulIntegerToFloat `node` is."""
    codes, scales, zeros, bias = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 3, 5, 6))
    weight = ir.node("DequantizeLinear", [codes, scales, zeros], {"axis": 1}, name=f"{node.name}.dequantize")
    product = ir.node("MatMul", [left, weight.outputs[0]], name=node.name)
    graph.insert_before(node, weight)
    if bias is None:
        replace(graph, node, product)
        return
    graph.insert_before(node, product)
    replace(graph, node, ir.node("Add", [product.outputs[0], bias], name=f"{node.name}.bias"))


def _keep_floats(node: ir.Node) -> None:
    """Give attention a float32 cache, where it has an int8 one."""
    for index in range(K_SCALE, len(node.inputs)):
        node.replace_input_with(index, None)
    for name in ("k_quant_type", "v_quant_type", "kv_cache_bit_width"):
        node.attributes.pop(name, None)
    for value in (*node.inputs[3:5], *node.outputs[1:3]):
        if value is not None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
