"""Read the integers of an artifact back out of the graph that its engine is compiled from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.backends.tensorrt.recipe import MODEL_FILE
from edgec.graph.weights import Codes, stored_codes, weight_nodes
from edgec.quantize.activations import activation_scales, quantizers


def read_codes(artifact: Path) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each weight behind a `DequantizeLinear`; TensorRT takes symmetric ones only."""
    for node in weight_nodes(ir.load(artifact / MODEL_FILE).graph):
        stored = stored_codes(node)
        scales = stored.scales().astype(np.float32)
        yield stored.name, Codes(stored.codes(), scales, None, stored.scheme, stored.global_scale())


def read_scales(artifact: Path) -> dict[str, tuple[float, ...]]:
    """Return the scales of activations and of the cache, by their names."""
    graph = ir.load(artifact / MODEL_FILE).graph
    found = activation_scales(graph)
    for node in quantizers(graph):
        if "axis" in node.attributes:  # a key or value, which goes behind its past
            past = next(iter(node.outputs[0].uses())).node.inputs[0]
            assert past is not None
            assert past.shape is not None
            name = str(node.name).removesuffix(".quantize")
            found[name] = tuple(np.repeat(found[name], int(past.shape[3])).tolist())  # type: ignore[arg-type]
    return found
