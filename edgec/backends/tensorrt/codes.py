"""Read the integers of an artifact back out of the graph that its engine is compiled from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgec.backends.tensorrt.recipe import MODEL_FILE
from edgec.graph.weights import Codes, stored_codes, weight_nodes


def read_codes(artifact: Path) -> Iterator[tuple[str, Codes]]:
    """Yield (name, integers) of each weight behind a `DequantizeLinear`; TensorRT takes symmetric ones only."""
    for node in weight_nodes(ir.load(artifact / MODEL_FILE).graph):
        stored = stored_codes(node)
        scales = stored.scales().astype(np.float32)
        yield stored.name, Codes(stored.codes(), scales, None, stored.scheme, stored.global_scale())
