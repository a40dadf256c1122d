"""nvfp4 weights where ONNX Runtime is to run them: its CPU kernels take no FLOAT4E2M1."""

from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.rewrite import lazy, sweep
from edgec.graph.weights import StoredCodes, stored_codes, weight_nodes


def expand_nvfp4(model: ir.Model) -> ir.Model:
    """Return `model`, or a copy in which each nvfp4 weight is a lazy float32 initializer of the same numbers."""
    if not any(map(is_nvfp4, weight_nodes(model.graph))):
        return model
    expanded = model.clone()
    graph = expanded.graph
    for node in filter(is_nvfp4, weight_nodes(graph)):
        stored = stored_codes(node)
        shape = stored.shape[::-1] if stored.transposed else stored.shape
        weight = lazy(graph, stored.name, ir.DataType.FLOAT, shape, partial(_floats, stored))
        node.outputs[0].replace_all_uses_with(weight)
    sweep(graph)
    return expanded


def is_nvfp4(node: ir.Node) -> bool:
    """Say whether one of `weight_nodes` gives an nvfp4 weight."""
    return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT4E2M1


def _floats(stored: StoredCodes) -> NDArray[np.float32]:
    floats = stored.floats()
    return floats.T if stored.transposed else floats
