"""Nodes that compute the same, and initializers that hold the same."""

import hashlib
from collections.abc import Hashable

import onnx_ir as ir

from edgec.fuse.rule import Near, Phase, Stage, is_constant
from edgec.fuse.surgery import bypass

TITLE = "duplicates merged"
STAGE: Stage = "canonical"
PHASE: Phase = "clean"

_DIGEST = "edgec.digest"
_RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform")
_OPAQUE = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)


def apply(model: ir.Model, near: Near) -> list[str]:  # noqa: ARG001  what is nearly the same is not the same
    """Merge duplicates within each graph, and return the names of what is gone."""
    gone = []
    for graph in model.graphs():
        gone += _merge_initializers(graph)
        gone += _merge_nodes(graph)
    return gone


def _merge_nodes(graph: ir.Graph) -> list[str]:
    first: dict[Hashable, ir.Node] = {}
    gone = []
    for node in graph:
        kept = first.setdefault(_meaning(node), node)
        if kept is not node and _merge(node, kept):
            gone.append(str(node.name))
    return gone


def _meaning(node: ir.Node) -> Hashable:
    """Return what two nodes share only if they compute the same."""
    if node.op_type.startswith(_RANDOM) or any(attribute.type in _OPAQUE for attribute in node.attributes.values()):
        return node
    attributes = frozenset((name, item.type, _frozen(item.value)) for name, item in node.attributes.items())
    return node.op_identifier(), tuple(node.inputs), len(node.outputs), attributes


def _frozen(value: object) -> Hashable:
    return tuple(value) if isinstance(value, (list, tuple)) else repr(value)


def _merge(node: ir.Node, kept: ir.Node) -> bool:
    """Let users of `node` read `kept` instead; outputs of a graph stay, unless there is one output to rename."""
    if len(node.outputs) == 1:
        if kept.outputs[0].is_graph_output() and node.outputs[0].is_graph_output():
            return False
        return bypass(node, kept.outputs[0])
    if any(value.is_graph_output() for value in node.outputs):
        return False
    for old, new in zip(node.outputs, kept.outputs, strict=True):
        old.replace_all_uses_with(new)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return True


def _merge_initializers(graph: ir.Graph) -> list[str]:
    alike: dict[Hashable, list[ir.Value]] = {}
    for value in graph.initializers.values():
        if is_constant(value) and not value.is_graph_output() and value.const_value is not None:
            tensor = value.const_value
            alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    gone = []
    for values in alike.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            kept = first.setdefault(_digest(value), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[str(value.name)]
                gone.append(str(value.name))
    return gone


def _digest(value: ir.Value) -> bytes:
    """Return the hash of a constant's data, which is read for this once."""
    tensor = value.const_value
    assert tensor is not None
    hashed, digest = value.meta.get(_DIGEST, (None, b""))
    if hashed is not tensor:
        text = tensor.dtype == ir.DataType.STRING
        digest = hashlib.sha256(repr(tensor.numpy().tolist()).encode() if text else tensor.tobytes()).digest()
        value.meta[_DIGEST] = (tensor, digest)
    return bytes(digest)
