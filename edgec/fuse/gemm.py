"""A product of matrices and the bias added to it, as one Gemm: for matrices only, since Gemm takes nothing else."""

from typing import Any

import onnx_ir as ir

from edgec.fuse.linear import outputs_of
from edgec.fuse.rule import Fusion, MatchResult, Phase, Stage, is_constant, node_of, rank_of, static_shape

TITLE = "MatMul and Add of matrices into Gemm"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"


class _Biased(Fusion):
    def __init__(self, bias_first: bool) -> None:
        self.bias_first = bias_first

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        product = op.MatMul(x, weight, _outputs=["product"])
        return op.Add(bias, product) if self.bias_first else op.Add(product, bias)

    def check(self, context: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value) -> MatchResult:  # noqa: ARG002
        result = MatchResult()
        if not is_constant(weight) or not is_constant(bias) or rank_of(weight) != 2 or rank_of(x) not in {None, 2}:
            return result.fail()
        if rank_of(x) is None:
            return result.fail("it is not known whether the input is a matrix")
        columns = outputs_of(node_of(product))
        if static_shape(bias) not in {(columns,), (1, columns), (1,), (1, 1), ()}:
            return result.fail(f"the bias is not one number for each of {columns} outputs")
        return result

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value) -> Any:  # noqa: ARG002
        return op.Gemm(x, weight, bias)


RULES = (_Biased.rule(False), _Biased.rule(True))
