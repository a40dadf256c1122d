"""Write and read artifacts of networks: a directory with one ONNX file that onnxruntime loads as it stands.

Convolutions stay behind standard QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses as it loads them.
Products are written as its own operators, for what it makes of the standard ones rounds their outputs, or leaves their
biases outside.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.backends.backend import Integers8, NetworkJob
from edgec.backends.network import write_network_settings
from edgec.backends.onnx_cpu import CONTRIB
from edgec.backends.onnx_cpu.codes import kernel_codes
from edgec.backends.onnx_cpu.files import MODEL_FILE
from edgec.backends.onnx_cpu.integer import is_weight, lower_integer_matmuls, multiply
from edgec.backends.onnx_cpu.kernels import saturates
from edgec.backends.onnx_cpu.matmul import lower_gathers, lower_matmuls
from edgec.fuse import fuse
from edgec.graph.integers import grids_of, network_codes
from edgec.graph.rewrite import array_of, lazy, replace, sweep
from edgec.graph.sparse import load, remarks, save
from edgec.graph.write import write_weights

_FLOAT_ACTIVATIONS = 1


def compile_network(job: NetworkJob, folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    lowered = lower_network(job.model, job.plan.wishes.activations, unsigned_weights=saturates(job.target))
    write_weights(lowered, folder, lambda _: None, sparse=True)
    save(lowered, folder / MODEL_FILE)
    write_network_settings(folder, job, "onnx_cpu", MODEL_FILE)
    return remarks(lowered)


def lower_network(model: ir.Model, activations: str, *, unsigned_weights: bool) -> ir.Model:
    """Return a copy of a quantized network with ONNX Runtime's own operators where they are faster.

    Args:
        model: the canonical graph; not changed.
        activations: "static" where they are in the graph, else what the runtime makes of them: "dynamic" or "float".
        unsigned_weights: see `edgec.backends.onnx_cpu.integer`.
    """
    lowered = model.clone()
    graph = lowered.graph
    graph.opset_imports[CONTRIB] = 1
    _split_gemms(graph)
    match activations:
        case "static":
            lower_integer_matmuls(graph, unsigned_weights=unsigned_weights)
        case "dynamic":
            _lower_dynamic(graph, unsigned_weights=unsigned_weights)
        case _:
            lower_matmuls(graph, _FLOAT_ACTIVATIONS)
    lower_gathers(graph)
    fuse(lowered, "onnx_cpu")
    sweep(graph)
    return lowered


def _split_gemms(graph: ir.Graph) -> None:
    """Write each Gemm with an integer weight as MatMul and Add, of which one operator is made whatever the mode.

    Which side of the weight the outputs are on, its scales say. Left to itself, ONNX Runtime would round what a Gemm
    multiplies, also where it should not.
    """
    for node in list(graph):
        if node.op_type != "Gemm" or not is_weight(node.inputs[1]):
            continue
        product = ir.node("MatMul", node.inputs[:2], name=node.name)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            replace(graph, node, product)
            continue
        product.outputs[0].name = f"{node.name}.product"
        graph.insert_before(node, product)
        inputs = [product.outputs[0], _float_bias(graph, bias, node)]
        replace(graph, node, ir.node("Add", inputs, name=f"{node.name}.bias"))


def _float_bias(graph: ir.Graph, value: ir.Value, gemm: ir.Node) -> ir.Value:
    """Return what an int32 bias stands for, and one number for all outputs once for each; another bias as it is."""
    node, shape = value.producer(), gemm.outputs[0].shape
    if node is not None and node.op_type == "DequantizeLinear":
        codes, scales = (array_of(v) for v in node.inputs[:2] if v is not None)
        bias = codes.astype(np.float32) * scales
    elif value.is_initializer() and value.shape == (1,) and shape is not None and isinstance(shape[-1], int):
        bias = np.repeat(array_of(value), shape[-1])
    else:
        return value
    return lazy(graph, f"{gemm.name}.constant", ir.DataType.FLOAT, bias.shape, lambda: bias)


def _lower_dynamic(graph: ir.Graph, *, unsigned_weights: bool) -> None:
    """Round what int8 weights multiply as the model runs: once for all products that read the same value."""
    made: dict[ir.Value, ir.Node] = {}
    for node in list(graph):
        value = node.inputs[0] if node.op_type == "MatMul" else None
        if value is None or not is_weight(node.inputs[1]):
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


def read_integers(artifact: Path) -> Integers8:
    """Return the integers of an artifact; see `edgec.backends.backend.Backend`."""
    graph = load(artifact / MODEL_FILE).graph
    weights = {name: (codes.codes, codes.scales[:, 0]) for name, codes in kernel_codes(graph)}
    standard = {name: (codes, scales) for name, codes, scales in network_codes(graph)}
    return Integers8({**weights, **standard}, grids_of(graph))
