"""The sum in front of a norm and the norm, as ONNX Runtime's SkipSimplifiedLayerNormalization: of few numbers alone.

Both operators together are faster than the fused one, which sums number by number: with RMSNormalization from some
hundred numbers on, up to twice as fast, and with LayerNormalization always, two to eight times (`bench/fusions.py`).
That one ONNX Runtime would fuse as it loads the model: the sums are written as Sum, which it leaves alone.

Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.SkipSimplifiedLayerNormalization.
"""

import math

import onnx_ir as ir

from edgec.fuse.rule import Near, Phase, Stage, is_constant, rank_of
from edgec.fuse.surgery import same_size
from edgec.fuse.terms import maker

TITLE = "Skip and norm into one"
STAGE: Stage = "onnx_cpu"
PHASE: Phase = "join"

_RANKS = (2, 3)
_SLOWER = "ONNX Runtime takes longer for the two in one than for both, but for few numbers"
_FEW = 384
"""Numbers that the fused operator is not slower for."""


def apply(model: ir.Model, near: Near) -> list[str]:
    """Fuse norms with the sums in front of them, and return the names of the nodes."""
    made = []
    for graph in model.graphs():
        for norm in [node for node in graph if maker(node.outputs[0], "RMSNormalization", "LayerNormalization")]:
            add = maker(norm.inputs[0], "Add", "Sum")
            if add is None or len(add.inputs) != 2 or add.graph is not graph or any(map(is_constant, add.inputs)):
                continue
            if norm.op_type == "LayerNormalization":
                add.op_type = "Sum"
            reason = _refusal(add, norm)
            if reason:
                near(norm, reason)
            else:
                made.append(str(_fuse(graph, add, norm).name))
                model.opset_imports.setdefault("com.microsoft", 1)
    return made


def _refusal(add: ir.Node, norm: ir.Node) -> str | None:
    """Say why a sum and a norm stay apart."""
    if norm.op_type == "LayerNormalization":
        return _SLOWER
    total, scale = norm.inputs[0], norm.inputs[1]
    rank = rank_of(total)
    if rank not in _RANKS or norm.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return "the norm is not known to be along the last of two or three axes"
    if total is None or total.dtype != ir.DataType.FLOAT:
        return "it is not known to compute in float32"
    if rank_of(scale) != 1 or not is_constant(scale):
        return "the weight is not a constant with one number for each element"
    x, skip = (None if value is None else value.shape for value in add.inputs)
    if x is None or skip is None or len(x) != len(skip) or not all(map(same_size, x, skip)):
        return f"nothing shows that what is added has one shape: {x} and {skip}"
    return None if x.is_static() and math.prod(x.numpy()) <= _FEW else _SLOWER


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> ir.Node:
    attributes = {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}
    fused = ir.node(
        "SkipSimplifiedLayerNormalization", [*add.inputs, norm.inputs[1]], attributes,
        num_outputs=4, domain="com.microsoft", name=norm.name, metadata_props=dict(norm.metadata_props),
    )  # fmt: skip
    # The sum may be needed (by the other branch) before the norm stands: put both where the sum was made.
    graph.insert_before(add, fused)
    for old, new in ((norm.outputs[0], fused.outputs[0]), (add.outputs[0], fused.outputs[3])):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    for unused in fused.outputs[1:3]:
        unused.name = ""
    graph.remove(norm, safe=True)
    graph.remove(add, safe=True)
    return fused
