"""BatchNormalization into the weights of the operator before it, or of the one after it.

With s = gamma / sqrt(variance + epsilon) and t = beta - mean s it computes s x + t for each channel. After a linear
operator that is (s W) x + (s b + t); before one it is (W s) x + (b + W t), at borders only if nothing is padded.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.fuse.linear import LINEAR, Floats, emit_fed, emit_scaled, inputs_of, outputs_of, refusal
from edgec.fuse.rule import Fusion, MatchFailureError, MatchResult, Phase, Stage, constant_of, node_of, rank_of

TITLE = "BatchNormalization into Conv, ConvTranspose, Gemm or MatMul"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"
ANCHORS = ("BatchNormalization",)


class _IntoPrevious(Fusion):
    def __init__(self, operator: str) -> None:
        self.operator = operator

    def pattern(self, op: Any, x: Any) -> Any:
        linear = getattr(op, self.operator)(x, _allow_other_inputs=True, _outputs=["linear"])
        return op.BatchNormalization(linear, _allow_other_inputs=True, _outputs=["normal"])

    def check(self, context: Any, linear: ir.Value, normal: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        node, result = node_of(linear), MatchResult()
        scale, _shift = _scale_and_shift(node_of(normal))
        if reason := refusal(node):
            return result.fail(reason)
        if node.op_type == "MatMul" and rank_of(linear) != 2:
            return result.fail("the product is not known to be a matrix")
        if scale.size != outputs_of(node):
            return result.fail(f"{scale.size} channels are normalized, of {outputs_of(node)}")
        return result

    def rewrite(self, op: Any, x: ir.Value, linear: ir.Value, normal: ir.Value) -> Any:  # noqa: ARG002
        return emit_scaled(op, node_of(linear), *_scale_and_shift(node_of(normal)))


class _IntoNext(Fusion):
    def __init__(self, operator: str) -> None:
        self.operator = operator

    def pattern(self, op: Any, x: Any) -> Any:
        normal = op.BatchNormalization(x, _allow_other_inputs=True, _outputs=["normal"])
        return getattr(op, self.operator)(normal, _allow_other_inputs=True, _outputs=["linear"])

    def check(self, context: Any, linear: ir.Value, normal: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        node, result = node_of(linear), MatchResult()
        scale, shift = _scale_and_shift(node_of(normal))
        if reason := refusal(node):
            return result.fail(reason)
        if _pads(node) and shift.any():
            return result.fail("the convolution pads with zeros, which are not what normalized zeros are")
        if node.attributes.get_int("transA", 0):
            return result.fail("the normalized matrix is transposed")
        if scale.size != inputs_of(node):
            return result.fail(f"{scale.size} channels are normalized, of {inputs_of(node)}")
        return result

    def rewrite(self, op: Any, x: ir.Value, linear: ir.Value, normal: ir.Value) -> Any:
        return emit_fed(op, node_of(linear), x, *_scale_and_shift(node_of(normal)))


def _scale_and_shift(node: ir.Node) -> tuple[Floats, Floats]:
    """Return s and t of a BatchNormalization.

    Raises:
        MatchFailureError: they depend on the input, or are computed.
    """
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
        raise MatchFailureError("the normalization is in training mode", node)
    names = ("the scale", "the offset", "the mean", "the variance")
    values = [constant_of(value, f"{name} of {node.name}") for value, name in zip(node.inputs[1:5], names, strict=True)]
    gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _pads(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or any(node.attributes.get_ints("pads", ()))


RULES = (*(_IntoPrevious.rule(operator) for operator in LINEAR), _IntoNext.rule("Conv"), _IntoNext.rule("Gemm"))
