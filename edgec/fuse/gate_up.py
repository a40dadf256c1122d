"""The two products of a gated feed-forward layer, one of which goes through an activation, as one."""

import onnx_ir as ir

from edgec.fuse.packing import join_siblings
from edgec.fuse.rule import Near, Phase, Stage

TITLE = "Gate and up into one product"
STAGE: Stage = "onnx_cpu"
PHASE: Phase = "join"

_ACTIVATIONS = ("QuickGelu", "Gelu", "Relu", "Sigmoid", "Tanh", "Identity", "Add")


def apply(model: ir.Model, near: Near) -> list[str]:
    """Join gates with what they are multiplied with, and return the names of the wide products."""
    return join_siblings(model, near, "Mul", _ACTIVATIONS)
