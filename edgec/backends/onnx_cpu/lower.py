"""Canonical graph -> the graph that ONNX Runtime runs fastest on a CPU, and that onnxruntime-genai loads."""

import onnx_ir as ir

from edgec.backends.onnx_cpu import CONTRIB
from edgec.backends.onnx_cpu.attention import lower_attention
from edgec.backends.onnx_cpu.integer import lower_integer_matmuls
from edgec.backends.onnx_cpu.matmul import lower_gathers, lower_matmuls
from edgec.fuse import fuse
from edgec.graph.rewrite import sweep


def lower(model: ir.Model, accuracy_level: int, *, unsigned_weights: bool = False) -> ir.Model:
    """Return a lowered copy of a canonical decoder graph; weights stay lazy.

    Args:
        model: the canonical graph; not changed.
        accuracy_level: of MatMulNBits: 1 computes with float32 activations (exact mode), 4 with int8 ones.
        unsigned_weights: of matmuls by int8 activations; see `edgec.backends.onnx_cpu.integer`.
    """
    lowered = model.clone()
    graph = lowered.graph
    graph.opset_imports[CONTRIB] = 1
    lower_integer_matmuls(graph, unsigned_weights=unsigned_weights)
    lower_matmuls(graph, accuracy_level)
    lower_gathers(graph)
    fuse(lowered, "onnx_cpu")
    lower_attention(graph)
    sweep(graph)
    for value in [v for v in graph.inputs if v.name == "position_ids" and not v.uses()]:
        graph.inputs.remove(value)
    return lowered
