"""Compute only the logits that generation reads: those of the last token of each row.

For a prompt of 128 tokens and a vocabulary of 49152 the output matrix is a fifth of SmolLM2-135M's work, and the
logits of a prompt of 8192 tokens would fill 1.6 GB.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.graph.rewrite import constant


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
    """Write hidden[row, max(kept tokens of the row - 1 - past, 0)], (batch, 1, hidden)."""
    inputs = {value.name: value for value in graph.inputs}
    zero = constant(graph, "last.zero", np.array(0, np.int64))
    one = constant(graph, "last.one", np.array([1], np.int64))
    axes = constant(graph, "last.axes", np.array([1, 2], np.int64))

    def op(name: str, op_type: str, *values: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, list(values), attributes, name=f"last.{name}")
        node.outputs[0].name = node.name
        graph.insert_before(head, node)
        return node.outputs[0]

    # The number of tokens is a handful of integers: each node here runs for every token that is generated.
    kept = op("kept", "ReduceSum", inputs["attention_mask"], one, keepdims=0)
    total = op("total", "Shape", inputs["attention_mask"], start=1)
    length = op("length", "Shape", inputs["input_ids"], start=1)
    past_and_one = op("past_and_one", "Add", op("past", "Sub", total, length), one)
    index = op("index", "Max", op("offset", "Sub", kept, past_and_one), zero)
    return op("hidden", "GatherND", hidden, op("indices", "Unsqueeze", index, axes), batch_dims=1)
