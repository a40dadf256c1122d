"""Nodes and initializers that no output depends on."""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgec.fuse.rule import Near, Phase, Stage

TITLE = "dead nodes removed"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"


def apply(model: ir.Model, near: Near) -> list[str]:  # noqa: ARG001  there is no nearly dead
    """Remove what is not read, and return the names of the nodes that are gone."""
    before = [str(node.name) for node in model.graph.all_nodes()]
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]
    after = {str(node.name) for node in model.graph.all_nodes()}
    return [name for name in before if name not in after]
