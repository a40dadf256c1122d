"""A constant for each output, multiplied with or added to what a linear operator computes, into its weights."""

from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.fuse.linear import LINEAR, Floats, emit_scaled, outputs_of, refusal
from edgec.fuse.rule import (
    Fusion,
    MatchFailureError,
    MatchResult,
    Phase,
    Stage,
    constant_of,
    is_constant,
    node_of,
    rank_of,
)

TITLE = "scales and offsets into weights"
STAGE: Stage = "canonical"
PHASE: Phase = "fold"


class _Scaled(Fusion):
    def __init__(self, operator: str, arithmetic: str, constant_first: bool) -> None:
        self.operator, self.arithmetic, self.constant_first = operator, arithmetic, constant_first

    def pattern(self, op: Any, x: Any, number: Any) -> Any:
        linear = getattr(op, self.operator)(x, _allow_other_inputs=True, _outputs=["linear"])
        operands = (number, linear) if self.constant_first else (linear, number)
        return getattr(op, self.arithmetic)(*operands)

    def check(self, context: Any, number: ir.Value, linear: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        result, node = MatchResult(), node_of(linear)
        if not is_constant(number) or not is_constant(node.inputs[1]):
            return result.fail()
        if reason := refusal(node):
            return result.fail(reason)
        numbers = _numbers(number, node)
        if self.arithmetic == "Div" and not numbers.all():
            return result.fail("it divides by zero")
        return result

    def rewrite(self, op: Any, x: ir.Value, number: ir.Value, linear: ir.Value) -> Any:  # noqa: ARG002
        node = node_of(linear)
        numbers = _numbers(number, node)
        one, zero = np.ones(outputs_of(node)), np.zeros(outputs_of(node))
        scale, shift = {
            "Mul": (numbers, zero),
            "Div": (1 / numbers if self.arithmetic == "Div" else one, zero),
            "Add": (one, numbers),
            "Sub": (one, -numbers),
        }[self.arithmetic]
        return emit_scaled(op, node, scale, shift)


def _numbers(number: ir.Value, node: ir.Node) -> Floats:
    """Return one number for each output of a linear operator.

    Raises:
        MatchFailureError: the constant differs within an output, or makes the result larger.
    """
    data = constant_of(number, "the factor").astype(np.float64)
    rank = rank_of(node.outputs[0]) or (1 if node.op_type == "MatMul" else rank_of(node.inputs[1])) or 1
    if data.ndim > rank:
        raise MatchFailureError("the constant has more axes than what it is multiplied with", number)
    axis = rank - 1 if node.op_type in {"MatMul", "Gemm"} else 1
    shape = (1,) * (rank - data.ndim) + data.shape
    outputs = outputs_of(node)
    if any(size != 1 and (position != axis or size != outputs) for position, size in enumerate(shape)):
        raise MatchFailureError("the constant is not one number for each output", number)
    return np.broadcast_to(data.reshape(-1), (outputs,)).copy()


RULES = tuple(
    _Scaled.rule(operator, arithmetic, first)
    for operator in LINEAR
    for arithmetic in ("Mul", "Div", "Add", "Sub")
    for first in (False, True)
    if not (first and arithmetic in {"Div", "Sub"}) and not (operator == "MatMul" and arithmetic in {"Add", "Sub"})
)
