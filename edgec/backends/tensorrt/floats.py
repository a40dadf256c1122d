"""nvfp4 weights in TensorRT's strongly typed graphs.

The canonical graph's two `DequantizeLinear` are what TensorRT takes, and codes and E4M3 scales stay in the engine as
they are. The scale of the whole weight stays float32, because as float16 it would be subnormal more often than not: the
weight is multiplied out in float32, and rounded once. fp8 weights need no rule: they are lowered as int8 ones are.

Source: NVIDIA TensorRT documentation, quantized types, double quantization; measured (docs/design.md, section 6).
"""

import onnx_ir as ir

from edgec.graph.weights import stored_codes


def narrow_nvfp4(graph: ir.Graph, node: ir.Node, half: ir.DataType) -> str:
    """Put a cast to `half` behind the node that gives an nvfp4 weight; return the scale that stays float32."""
    weight = node.outputs[0]
    cast = ir.node("Cast", [weight], {"to": half}, name=f"{node.name}.narrow")
    cast.outputs[0].name = cast.name
    cast.metadata_props.update(node.metadata_props)
    for use in [use for use in weight.uses() if use.node is not cast]:
        use.node.replace_input_with(use.idx, cast.outputs[0])
    graph.insert_after(node, cast)
    return f"{stored_codes(node).name}.global_scale"
