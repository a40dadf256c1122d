"""Padding with zeros into the padding of the convolution that follows."""

from typing import Any

import onnx_ir as ir

from edgec.fuse.rule import Fusion, MatchFailureError, MatchResult, Phase, Stage, constant_of, node_of, rank_of

TITLE = "Pad into Conv"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"


class _IntoConv(Fusion):
    def pattern(self, op: Any, x: Any) -> Any:
        padded = op.Pad(x, _allow_other_inputs=True, _outputs=["padded"])
        return op.Conv(padded, _allow_other_inputs=True, _outputs=["convolved"])

    def check(self, context: Any, padded: ir.Value, convolved: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        _total(node_of(padded), node_of(convolved))
        return MatchResult()

    def rewrite(self, op: Any, x: ir.Value, padded: ir.Value, convolved: ir.Value) -> Any:
        conv = node_of(convolved)
        attributes = {name: value for name, value in conv.attributes.items() if name != "auto_pad"}
        pads = ir.AttrInt64s("pads", _total(node_of(padded), conv))
        return op.Conv(x, *conv.inputs[1:], **{**attributes, "pads": pads})


def _total(pad: ir.Node, conv: ir.Node) -> list[int]:
    """Return the padding of a convolution together with that of the Pad before it.

    Raises:
        MatchFailureError: the two are not the same as one.
    """
    rank = rank_of(conv.inputs[1])
    if pad.attributes.get_string("mode", "constant") != "constant":
        raise MatchFailureError("it does not pad with a constant", pad)
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None and constant_of(value, "what it pads with").any():
        raise MatchFailureError("it does not pad with zeros", pad)
    if conv.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or rank is None:
        raise MatchFailureError("the convolution's own padding depends on its input", conv)
    given = constant_of(pad.inputs[1], "how much it pads").tolist()
    chosen = pad.inputs[3] if len(pad.inputs) > 3 else None
    axes = range(rank) if chosen is None else [int(axis) % rank for axis in constant_of(chosen, "which axes it pads")]
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = given[position], given[position + len(given) // 2]
    if any(before[:2] + after[:2]):
        raise MatchFailureError("it pads batch or channels", pad)
    if min(before + after) < 0:
        raise MatchFailureError("it crops", pad)
    own = conv.attributes.get_ints("pads", [0] * (2 * rank - 4))
    return [a + b for a, b in zip(before[2:] + after[2:], own, strict=True)]


RULES = (_IntoConv.rule(),)
