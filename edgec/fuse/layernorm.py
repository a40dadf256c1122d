"""LayerNormalization from the arithmetic that exporters write for it: (x - mean) / sqrt(variance + epsilon).

What comes after it, a factor and an offset for each element of the last axis, becomes its weights.

Source: Ba, Kiros and Hinton, "Layer Normalization", https://arxiv.org/abs/1607.06450.
"""

import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleSet

from edgec.fuse.norms import Affine, Arithmetic, Normal, mean_of, normal_of
from edgec.fuse.rule import Phase, Stage
from edgec.fuse.terms import maker

TITLE = "LayerNormalization from its arithmetic"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"


def _read(y: ir.Value) -> Normal | None:
    """Return what is normalized around its mean to make a value; None if that is not how it is made.

    Raises:
        MatchFailureError: it is normalized along other axes than the last.
    """
    normal = normal_of(y)
    centred = None if normal is None else maker(normal.x, "Sub")
    if normal is None or centred is None:
        return None
    x, mean = centred.inputs[0], mean_of(centred.inputs[1])
    if x is None or mean is None or mean[0] is not x:
        return None
    return Normal(x, normal.epsilon, (*normal.nodes, centred, mean[1]))


RULES = (
    Arithmetic.rule("Div", _read, "LayerNormalization"),
    Arithmetic.rule("Mul", _read, "LayerNormalization"),
    *RewriteRuleSet([Affine.rule("LayerNormalization", kind) for kind in ("Mul", "Add")], commute=True),
)
