"""RMSNormalization from the arithmetic that exporters write for it: x / sqrt(mean(x^2) + epsilon).

The factor after it, one for each element of the last axis, becomes its weight.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", https://arxiv.org/abs/1910.07467.
"""

from onnxscript.rewriter import RewriteRuleSet

from edgec.fuse.norms import Affine, Arithmetic, normal_of
from edgec.fuse.rule import Phase, Stage

TITLE = "RMSNormalization from its arithmetic"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"


RULES = (
    Arithmetic.rule("Div", normal_of, "RMSNormalization"),
    Arithmetic.rule("Mul", normal_of, "RMSNormalization"),
    *RewriteRuleSet([Affine.rule("RMSNormalization", "Mul")], commute=True),
)
