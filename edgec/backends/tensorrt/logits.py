"""The logits that an engine computes: those of the last token, which is all that generation reads."""

import numpy as np
import onnx_ir as ir

from edgec.graph.rewrite import constant

_LAST = "last.hidden"


def last_logits_only(model: ir.Model) -> ir.Model:
    """Make a lowered decoder's `logits` (batch, 1, vocab), and return it; prompts are whole rows, without padding."""
    graph = model.graph
    head = _head(graph)
    ends = (("start", -1), ("end", np.iinfo(np.int64).max), ("axis", 1))
    limits = [constant(graph, f"last.{name}", np.array([value], np.int64)) for name, value in ends]
    node = ir.node("Slice", [head.inputs[0], *limits], name=_LAST)
    node.outputs[0].name = _LAST
    node.metadata_props.update(head.metadata_props)
    graph.insert_before(head, node)
    head.replace_input_with(0, node.outputs[0])
    logits = _logits(graph)
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
    return model


def all_logits(model: ir.Model) -> ir.Model:
    """Undo `last_logits_only`, for evaluation."""
    graph = model.graph
    node = next(node for node in graph if node.name == _LAST)
    _head(graph).replace_input_with(0, node.inputs[0])
    graph.remove(node, safe=True)
    logits = _logits(graph)
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], "sequence", logits.shape[2]])
    return model


def _head(graph: ir.Graph) -> ir.Node:
    return next(node for node in graph if node.name == "lm_head")


def _logits(graph: ir.Graph) -> ir.Value:
    return next(value for value in graph.outputs if value.name == "logits")
