"""Compute only the logits that generation reads: those of the last token of each row.

For a prompt of 128 tokens and a vocabulary of 49152 the output matrix is a fifth of SmolLM2-135M's work, and the
logits of a prompt of 8192 tokens would fill 1.6 GB.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.backends.onnx_cpu.rewrite import constant
from edgec.graph.tags import BLOCK


def last_logits_only(model: ir.Model) -> ir.Model:
    """Return a copy of a lowered decoder whose `logits` are (batch, 1, vocab).

    A prompt may be padded on the right: the last token of a row is the last one that its attention mask keeps.
    """
    trimmed = model.clone()
    graph = trimmed.graph
    head = next(node for node in graph if node.name == "lm_head")
    hidden = head.inputs[0]
    assert hidden is not None
    head.replace_input_with(0, _last_rows(graph, hidden, head))
    logits = next(value for value in graph.outputs if value.name == "logits")
    assert logits.shape is not None
    # A 1 here, not a name, tells onnxruntime-genai that the model gives one token's logits.
    logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
    return trimmed


def _last_rows(graph: ir.Graph, hidden: ir.Value, head: ir.Node) -> ir.Value:
    """Write hidden[row, clip(kept tokens of the row - 1 - past, 0, sequence - 1)], kept 3-dimensional."""
    inputs = {value.name: value for value in graph.inputs}
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    one = constant(graph, "last.one", np.array(1, np.int64))
    zero = constant(graph, "last.zero", np.array(0, np.int64))
    axis = constant(graph, "last.axis", np.array([1], np.int64))

    def op(op_type: str, *values: ir.Value, **attributes: Any) -> ir.Value:
        name = f"last.{len(names)}.{op_type.lower()}"
        names.append(name)
        node = ir.node(op_type, list(values), attributes, name=name)
        node.outputs[0].name = name
        node.metadata_props[BLOCK] = head.metadata_props[BLOCK]
        graph.insert_before(head, node)
        return node.outputs[0]

    names: list[str] = []
    total = op("Gather", op("Shape", mask), one, axis=0)
    length = op("Gather", op("Shape", ids), one, axis=0)
    kept = op("ReduceSum", mask, axis, keepdims=1)
    past = op("Sub", total, length)
    last = op("Sub", op("Sub", kept, one), past)
    last = op("Max", op("Min", last, op("Sub", length, one)), zero)
    rows = op("GatherND", hidden, last, batch_dims=1)
    return op("Unsqueeze", rows, axis)
