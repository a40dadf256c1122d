"""Queries, keys and values as one product, of which attention takes the parts; also keys and values alone.

Products of a decoder's attention are written so that ONNX Runtime's kernel for it takes the wide product as it is.
"""

import onnx_ir as ir

from edgec.fuse.packing import join_siblings
from edgec.fuse.rule import Near, Phase, Stage

TITLE = "Q, K and V into one product"
STAGE: Stage = "onnx_cpu"
PHASE: Phase = "join"

_BETWEEN = (
    *("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Concat", "Add", "Mul", "Identity"),
    *("RMSNormalization", "LayerNormalization", "RotaryEmbedding", "QuantizeLinear", "DequantizeLinear"),
)


def apply(model: ir.Model, near: Near) -> list[str]:
    """Join the products that an attention reads, and return the names of the wide ones."""
    return join_siblings(model, near, "Attention", _BETWEEN, inputs=3, whatever_rows=("MatMulNBits",))
