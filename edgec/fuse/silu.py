"""x * sigmoid(a x) as ONNX Runtime's QuickGelu: SiLU where a is 1, the fast GELU where it is 1.702.

ONNX Runtime does this itself when it loads a model; here it is done where it is seen, kept in the artifact, and found
by what comes after. The standard has an operator for it from opset 24 on only.

Source: Elfwing et al., "Sigmoid-Weighted Linear Units", https://arxiv.org/abs/1702.03118; Hendrycks and Gimpel,
"Gaussian Error Linear Units", https://arxiv.org/abs/1606.08415; ONNX Runtime, docs/ContribOperators.md.
"""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRuleSet

from edgec.fuse.rule import Fusion, MatchResult, Phase, Stage, scalar_of

TITLE = "SiLU and fast GELU into QuickGelu"
STAGE: Stage = "onnx_cpu"
PHASE: Phase = "fuse"


class _Silu(Fusion):
    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def check(self, context: Any, x: ir.Value) -> MatchResult:  # noqa: ARG002
        return _checked(x)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        return op.QuickGelu(x, alpha=1.0, _domain="com.microsoft")


class _Scaled(Fusion):
    def pattern(self, op: Any, x: Any, alpha: Any) -> Any:
        return op.Mul(x, op.Sigmoid(op.Mul(x, alpha)))

    def check(self, context: Any, x: ir.Value, alpha: ir.Value) -> MatchResult:  # noqa: ARG002
        if scalar_of(alpha) is None:
            return MatchResult().fail("what the sigmoid's input is multiplied with is not one constant number")
        return _checked(x)

    def rewrite(self, op: Any, x: ir.Value, alpha: ir.Value) -> Any:
        return op.QuickGelu(x, alpha=scalar_of(alpha), _domain="com.microsoft")


def _checked(x: ir.Value) -> MatchResult:
    result = MatchResult()
    return result if x.dtype == ir.DataType.FLOAT else result.fail("it is not known to compute in float32")


RULES = RewriteRuleSet([_Silu.rule(), _Scaled.rule()], commute=True)
