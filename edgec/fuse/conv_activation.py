"""A convolution and the activation after it, as ONNX Runtime's FusedConv.

ONNX Runtime does this itself when it loads a float model; here it is done where it is seen, and kept in the artifact.
A quantized convolution is left alone: ONNX Runtime makes one kernel of DequantizeLinear, Conv and QuantizeLinear, and
takes the activation into that.

Source: ONNX Runtime, docs/ContribOperators.md, com.microsoft.FusedConv.
"""

from typing import Any

import onnx_ir as ir

from edgec.fuse.rule import Fusion, MatchResult, Phase, Stage, constant_of, node_of

TITLE = "Conv and activation into FusedConv"
STAGE: Stage = "onnx_cpu"
PHASE: Phase = "fuse"

_ACTIVATIONS = ("Relu", "LeakyRelu", "Tanh", "Sigmoid", "Clip", "HardSigmoid")
_FLOAT_RANGE = (-3.4028234663852886e38, 3.4028234663852886e38)


class _Activated(Fusion):
    def __init__(self, activation: str) -> None:
        self.activation = activation

    def pattern(self, op: Any, x: Any) -> Any:
        convolved = op.Conv(x, _allow_other_inputs=True, _outputs=["convolved"])
        return getattr(op, self.activation)(convolved, _allow_other_inputs=True, _outputs=["activated"])

    def check(self, context: Any, x: ir.Value, convolved: ir.Value, activated: ir.Value) -> MatchResult:  # noqa: ARG002
        result = MatchResult()
        sources = [value.producer() for value in node_of(convolved).inputs if value is not None]
        if any(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            return result.fail("the convolution is quantized: ONNX Runtime makes one kernel of it with its Q/DQ")
        if activated.dtype != ir.DataType.FLOAT:
            return result.fail("FusedConv computes in float32, and this is not known to be float32")
        _parameters(node_of(activated))
        return result

    def rewrite(self, op: Any, x: ir.Value, convolved: ir.Value, activated: ir.Value) -> Any:
        conv, activation = node_of(convolved), node_of(activated)
        attributes = dict(conv.attributes)
        if parameters := _parameters(activation):
            attributes["activation_params"] = ir.AttrFloat32s("activation_params", parameters)
        attributes["activation"] = ir.AttrString("activation", activation.op_type)
        return op.FusedConv(x, *conv.inputs[1:], _domain="com.microsoft", _name=conv.name, **attributes)


def _parameters(node: ir.Node) -> list[float]:
    """Return the numbers that FusedConv needs to know of an activation.

    Raises:
        MatchFailureError: they are computed.
    """
    if node.op_type == "Clip":
        bounds = [node.inputs[at] if len(node.inputs) > at else None for at in (1, 2)]
        return [
            default if bound is None else float(constant_of(bound, "a bound of Clip"))
            for bound, default in zip(bounds, _FLOAT_RANGE, strict=True)
        ]
    if node.op_type == "LeakyRelu":
        return [node.attributes.get_float("alpha", 0.01)]
    if node.op_type == "HardSigmoid":
        return [node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)]
    return []


RULES = tuple(_Activated.rule(activation) for activation in _ACTIVATIONS)
