"""The twin of an artifact's graph that keeps activations in float32, for proofs; it is never shipped."""

from pathlib import Path

import onnx_ir as ir

EXACT_LEVEL = 1


def exact_model(path: Path) -> bytes:
    """Return the graph at `path` with float32 activations in its integer matmuls; its weights stay in their files."""
    model = ir.load(path)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", EXACT_LEVEL)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data
