"""The pass that rounds keys and values to int8 on their way into the cache, with one scale for each head.

Runtimes that find such scales as they run (OpenVINO, for each token and head) need none from here; ONNX Runtime's
kernels take them with the model.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.rewrite import constant
from edgec.quantize.activations import put_rounding, scale_of


def cached(model: ir.Model) -> dict[str, int]:
    """Return how many heads each key and value has that goes into the cache, by its name: (batch, sequence, width)."""
    found = {}
    for node in model.graph:
        if node.op_type == "Attention":
            for value in node.inputs[1:3]:
                assert value is not None
                found[str(value.name)] = node.attributes["kv_num_heads"].as_int()
    return found


def quantize_cache(model: ir.Model, clips: Mapping[str, NDArray[np.float64]]) -> ir.Model:
    """Return a copy of a canonical graph whose attention reads keys and values that were rounded to int8.

    Args:
        model: not changed; the copy shares its weights.
        clips: by the name of each value of `cached`, (heads,) the sizes from which to clip its numbers.

    Raises:
        KeyError: a value has no range.
        ValueError: a range is not finite.
    """
    quantized = model.clone()
    graph = quantized.graph
    for node in [node for node in graph if node.op_type == "Attention"]:
        for index, part in ((1, "key"), (2, "value")):
            value, past = node.inputs[index], node.inputs[index + 3]
            assert value is not None
            assert past is not None
            assert past.shape is not None
            head_dim = int(past.shape[3])  # type: ignore[arg-type]
            scales = np.array([scale_of(-clip, clip) for clip in clips[str(value.name)]], np.float32)
            name = f"{node.name}.{part}"
            scale = constant(graph, f"{name}.scale", np.repeat(scales, head_dim))
            zero = constant(graph, f"int8.zeros.{scale.shape[0]}", np.zeros(len(scales) * head_dim, np.int8))  # type: ignore[index]
            put_rounding(graph, name, value, [node], scale, zero, axis=2)
    return quantized
