"""The two products of a gated feed-forward layer, one of which goes through an activation, as one."""

import onnx_ir as ir

from edgec.fuse.packing import join, product_before, refusal, siblings
from edgec.fuse.rule import Near, Phase, Stage
from edgec.fuse.terms import maker

TITLE = "Gate and up into one product"
STAGE: Stage = "onnx_cpu"
PHASE: Phase = "join"

_ACTIVATIONS = ("QuickGelu", "Gelu", "Relu", "Sigmoid", "Tanh", "Identity", "Add")


def apply(model: ir.Model, near: Near) -> list[str]:
    """Join gates with what they are multiplied with, and return the names of the wide products."""
    made = []
    for graph in model.graphs():
        for gate in [node for node in graph if maker(node.outputs[0], "Mul") is not None]:
            products = siblings([product_before(value, _ACTIVATIONS) for value in gate.inputs])
            reason = refusal(products) if products else None
            if reason:
                near(gate, reason)
            elif products:
                made.append(str(join(products).name))
    return made
