"""Measure what rounding adds to the mean of each channel, so that biases can take it away again.

Rounded weights of a channel are off by some error, and inputs that are not 0 on average, such as those behind a Relu,
make a constant shift of it; where a channel has few weights, as in depthwise convolutions, it is a large one.

Each layer is measured alone: both the float and the quantized layer read what the float network gives. So one pass over
the samples measures all layers at once, and all corrections can be made at once: with them, what a layer reads has the
mean that was assumed. The shifts of a whole quantized network would count those of earlier layers again in later ones.

Source: Nagel et al. 2019, Data-free quantization through weight equalization and bias correction (arXiv:1906.04721),
section 4.2: the expected inputs are those of the float network, measured as in its empirical variant.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.run import run
from edgec.errors import CheckpointError, UsageError
from edgec.graph.rewrite import constant

_NONE: Mapping[str, Any] = {}


def mean_shift(
    float_model: ir.Model,
    quantized_model: ir.Model,
    names: Collection[str],
    batches: Iterable[Batch],
    *,
    threads: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Return what to add to the bias of each layer: the mean of its float outputs less that of the quantized ones.

    In memory is what both graphs need to run one batch, and means.

    Args:
        float_model: not changed.
        quantized_model: the same graph with QuantizeLinear and DequantizeLinear around layers; not changed.
        names: of Conv, ConvTranspose, Gemm and MatMul nodes that both graphs have.
        batches: taken one at a time.
        threads: of ONNX Runtime; 0 takes all cores.

    Returns:
        (channels,) by name: the second axis of what a convolution gives, the last one of what others give.

    Raises:
        UsageError: there are no samples, or they are not what the model takes.
        CheckpointError: the model cannot be run, or a mean is not finite.
        ValueError: there is no such node, or its weight has no shape.
    """
    if not names:
        return {}
    both = float_model.clone()
    _add_layers(both, quantized_model, names)
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    numbers = dict.fromkeys(names, 0)
    outputs = [f"{kind} of {name}" for name in names for kind in ("shift", "size")]
    for made in run(both, batches, outputs, threads=threads):
        for name in names:
            count = int(made[f"size of {name}"])
            sums[name] += made[f"shift of {name}"].astype(np.float64) * count
            numbers[name] += count
    for name in names:
        if not numbers[name]:
            raise UsageError("there are no samples to run the model on")
        if not np.isfinite(sums[name]).all():
            raise CheckpointError("the model computes numbers that are not finite", where=name)
    return {name: np.asarray(sums[name] / numbers[name]) for name in names}


def _add_layers(model: ir.Model, quantized_model: ir.Model, names: Collection[str]) -> None:
    """Add to the float graph each quantized layer, and `shift of NAME` (channels,) and `size of NAME`, a number."""
    graph = model.graph
    floats = {str(node.name): node for node in graph}
    quantized = {str(node.name): node for node in quantized_model.graph}
    if missing := [name for name in names if name not in floats or name not in quantized]:
        raise ValueError(f"both graphs must have {', '.join(missing)}")
    known = {str(v.name): v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}
    for name in names:
        layer = _copy(quantized[name], graph, known)
        difference = _append(graph, f"difference of {name}", "Sub", [floats[name].outputs[0], layer])
        _append(graph, f"size of {name}", "Size", [difference])
        axis = -1
        if floats[name].op_type in ("Conv", "ConvTranspose"):
            difference, axis = _append(graph, f"means of {name}", "GlobalAveragePool", [difference]), 1
        rows = _append(graph, f"rows of {name}", "Flatten", [difference], {"axis": axis})
        first = constant(graph, "first axis", np.array([0]))
        _append(graph, f"shift of {name}", "ReduceMean", [rows, first], {"keepdims": 0})


def _copy(node: ir.Node, graph: ir.Graph, known: dict[str, ir.Value]) -> ir.Value:
    """Write a quantized node into the float graph, and all in front of it that is not `known`; return its output.

    What it reads and the float graph computes too is that of the float graph. What is copied in front becomes `known`.
    """
    for value in (value for value in node.inputs if value is not None and value.name not in known):
        name, producer = str(value.name), value.producer()
        if producer is None:
            new = ir.Value(name=f"quantized {name}", type=value.type, shape=value.shape, const_value=value.const_value)
            graph.register_initializer(new)
            known[name] = new
        else:
            known[name] = _copy(producer, graph, known)
    inputs = [value and known[str(value.name)] for value in node.inputs]
    return _append(graph, f"quantized {node.name}", node.op_type, inputs, node.attributes)


def _append(
    graph: ir.Graph, name: str, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] = _NONE
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]
