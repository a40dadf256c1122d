"""Write and read artifacts of networks: a directory with one ONNX file that onnxruntime loads as it stands.

Convolutions stay behind standard QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses as it loads them.
Products are written as its own operators, for what it makes of the standard ones rounds their outputs, or leaves their
biases outside.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.backends.backend import Integers8, NetworkJob
from edgec.backends.network import NetworkSettings, write_network_settings
from edgec.backends.onnx_cpu import CONTRIB
from edgec.backends.onnx_cpu.codes import kernel_codes
from edgec.backends.onnx_cpu.files import MODEL_FILE
from edgec.backends.onnx_cpu.integer import lower_integer_matmuls, multiply, product_inputs, quantizer, rounded
from edgec.backends.onnx_cpu.kernels import saturates
from edgec.backends.onnx_cpu.matmul import lower_gathers, lower_matmuls
from edgec.graph.integers import grids_of, network_codes
from edgec.graph.rewrite import array_of, lazy, replace, sweep
from edgec.graph.weights import stored_codes
from edgec.graph.write import write_weights

_FLOAT_ACTIVATIONS = 1
_DYNAMIC = 4


def compile_network(job: NetworkJob, folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    lowered = lower_network(job.model, job.plan.wishes.activations, unsigned_weights=saturates(job.target))
    write_weights(lowered, folder, lambda _: None)
    ir.save(lowered, folder / MODEL_FILE)
    plan = job.plan
    write_network_settings(
        folder,
        NetworkSettings("onnx_cpu", MODEL_FILE, plan.inputs, plan.outputs, plan.task, job.network.labels),
    )
    return ()


def lower_network(model: ir.Model, activations: str, *, unsigned_weights: bool) -> ir.Model:
    """Return a copy of a quantized network with ONNX Runtime's own operators where they are faster.

    Args:
        model: the canonical graph; not changed.
        activations: "static" where they are in the graph, else what the runtime makes of them: "dynamic" or "float".
        unsigned_weights: see `edgec.backends.onnx_cpu.integer`.
    """
    lowered = model.clone()
    graph = lowered.graph
    lower_integer_matmuls(graph, unsigned_weights=unsigned_weights)
    for node in list(graph):
        if node.op_type == "Gemm" and (quantize := quantizer(node.inputs[0])) is not None:
            _lower_gemm(graph, node, quantize, unsigned_weights=unsigned_weights)
    if activations == "dynamic":
        _lower_dynamic(graph, unsigned_weights=unsigned_weights)
    lower_matmuls(graph, _DYNAMIC if activations == "dynamic" else _FLOAT_ACTIVATIONS)
    lower_gathers(graph)
    _keep_norms_apart(graph)
    sweep(graph)
    graph.opset_imports[CONTRIB] = 1
    return lowered


def _lower_gemm(graph: ir.Graph, node: ir.Node, quantize: ir.Node, *, unsigned_weights: bool) -> None:
    """Write a Gemm of integers as MatMulIntegerToFloat, whose bias is float."""
    weight = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert weight is not None
    inputs = product_inputs(graph, rounded(graph, quantize), stored_codes(weight), unsigned_weights=unsigned_weights)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs.append(_float_bias(graph, node.inputs[2]))
    replace(graph, node, ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=node.name))


def _float_bias(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return what an int32 bias stands for as a constant; another one as it is."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return value
    codes, scales = (array_of(v) for v in node.inputs[:2] if v is not None)
    bias = codes.astype(np.float32) * scales
    return lazy(graph, f"{node.name}.product", ir.DataType.FLOAT, bias.shape, lambda: bias)


def _lower_dynamic(graph: ir.Graph, *, unsigned_weights: bool) -> None:
    """Round what int8 weights multiply as the model runs: once for all products that read the same value."""
    made: dict[ir.Value, ir.Node] = {}
    for node in list(graph):
        weight = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        value = node.inputs[0] if node.inputs else None
        if weight is None or weight.op_type != "DequantizeLinear" or value is None:
            continue
        if value not in made:
            outputs = [
                ir.Value(name=f"{value.name}.{part}", type=ir.TensorType(dtype))
                for part, dtype in (
                    ("codes", ir.DataType.UINT8),
                    ("scale", ir.DataType.FLOAT),
                    ("zero", ir.DataType.UINT8),
                )
            ]
            made[value] = ir.node("DynamicQuantizeLinear", [value], outputs=outputs, name=f"{value.name}.quantize")
            graph.insert_before(node, made[value])
        codes, scale, zero = made[value].outputs
        multiply(graph, node, (codes, scale, zero), unsigned_weights=unsigned_weights)


def _keep_norms_apart(graph: ir.Graph) -> None:
    """Write the sums in front of norms as Sum, which ONNX Runtime does not fuse.

    What it would make of Add and LayerNormalization, SkipLayerNormalization, takes five times as long as both on a CPU
    (measured with ONNX Runtime 1.31: 143 us beside 26 us for 64 x 384 numbers).
    """
    for node in graph:
        add = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] else None
        if add is not None and add.op_type == "Add" and not add.domain:
            add.op_type = "Sum"


def read_integers(artifact: Path) -> Integers8:
    """Return the integers of an artifact; see `edgec.backends.backend.Backend`."""
    graph = ir.load(artifact / MODEL_FILE).graph
    weights = {name: (codes.codes, codes.scales[:, 0]) for name, codes in kernel_codes(graph)}
    standard = {name: (codes, scales) for name, codes, scales in network_codes(graph)}
    return Integers8({**weights, **standard}, grids_of(graph))
