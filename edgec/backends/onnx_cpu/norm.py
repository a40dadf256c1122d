"""Lower residual sums that a norm reads to ONNX Runtime's skip-normalisations, which do both in one pass."""

import onnx_ir as ir

from edgec.backends.onnx_cpu import CONTRIB

_FUSED = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


def lower_norms(graph: ir.Graph) -> None:
    """Replace each Add of two activations that is followed by a norm by one fused node with both results."""
    for norm in list(graph):
        if norm.op_type not in _FUSED or norm.inputs[0] is None:
            continue
        add = norm.inputs[0].producer()
        if add is None or add.op_type != "Add" or any(v is None or v.is_initializer() for v in add.inputs):
            continue
        if _rank(norm.inputs[0]) not in (None, 3):
            continue
        attributes = {"epsilon": norm.attributes["epsilon"].as_float()}
        inputs = [*add.inputs, *norm.inputs[1:]]
        fused = ir.node(_FUSED[norm.op_type], inputs, attributes, num_outputs=4, domain=CONTRIB, name=norm.name)
        fused.metadata_props.update(norm.metadata_props)
        # The sum may be needed (by the other branch) before the norm stands: put both where the sum was made.
        graph.insert_before(add, fused)
        for old, new in ((norm.outputs[0], fused.outputs[0]), (add.outputs[0], fused.outputs[3])):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        for unused in fused.outputs[1:3]:
            unused.name = ""
        graph.remove(norm, safe=True)
        graph.remove(add, safe=True)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)
