"""Gelu from the arithmetic that exporters write for it: x times the normal distribution's share below x.

With the error function it is exact, with tanh an approximation, and the operator has both. The coarser one with a
sigmoid is `silu.py`'s.

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", https://arxiv.org/abs/1606.08415.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import onnx_ir as ir

from edgec.fuse.rule import Fusion, MatchResult, Phase, Stage, other_use, scalar_of
from edgec.fuse.terms import close, maker, plus, product, scaled

TITLE = "Gelu from erf or tanh"
STAGE: Stage = "canonical"
PHASE: Phase = "fuse"

_CUBE = 0.044715


@dataclass(frozen=True)
class _Found:
    x: ir.Value
    approximate: str
    nodes: tuple[ir.Node, ...]


class _Gelu(Fusion):
    remove_nodes = False  # `check` knows the nodes better than the pattern, which is only where they end

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.Mul(a, b, _outputs=["y"])

    def check(self, context: Any, y: ir.Value, **_: Any) -> MatchResult:  # noqa: ARG002
        result = MatchResult()
        found = _read(y)
        if found is None:
            return result.fail()
        reason = other_use(found.nodes, [y])
        return result.fail(reason) if reason else result

    def rewrite(self, op: Any, y: ir.Value, **_: Any) -> Any:
        found = _read(y)
        assert found is not None
        return op.Gelu(found.x, approximate=found.approximate)


def _read(y: ir.Value) -> _Found | None:
    """Return the Gelu that a value is; None if it is something else."""
    for factor in product(y).factors:
        one = plus(factor, 1.0)
        if one is None:
            continue
        share, nodes = one[0], (one[1],)
        inner = _erf(share) or _tanh(share)
        if inner is None:
            continue
        outer = product(y, (inner.x, factor))
        if outer.is_of(0.5, inner.x, factor):
            return _Found(inner.x, inner.approximate, (*outer.nodes, *nodes, *inner.nodes))
    return None


def _erf(value: ir.Value) -> _Found | None:
    """Return x of erf(x / sqrt(2))."""
    node = maker(value, "Erf")
    if node is None or node.inputs[0] is None:
        return None
    inner = scaled(node.inputs[0])
    if not close(inner.number, math.sqrt(0.5)):
        return None
    return _Found(inner.factors[0], "none", (node, *inner.nodes))


def _tanh(value: ir.Value) -> _Found | None:
    """Return x of tanh(sqrt(2 / pi) (x + 0.044715 x^3)), where x may be taken out of the sum."""
    node = maker(value, "Tanh")
    if node is None or node.inputs[0] is None:
        return None
    for factor in product(node.inputs[0]).factors:
        adder = maker(factor, "Add")
        for x, term, outside in _readings(adder) if adder is not None else ():
            outer = product(node.inputs[0], (x, factor))
            power = product(term, (x,))
            if outer.is_of(math.sqrt(2 / math.pi), factor, *outside) and power.is_of(_CUBE, *[x] * (3 - len(outside))):
                assert adder is not None
                return _Found(x, "tanh", (node, *outer.nodes, adder, *power.nodes))
    return None


def _readings(adder: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, tuple[ir.Value, ...]]]:
    """Yield what x could be in x + term, or in x (1 + term) where it stands outside, too."""
    for first, term in permutations(value for value in adder.inputs if value is not None):
        if scalar_of(first) is None:
            yield first, term, ()
        elif close(scalar_of(first), 1.0):
            for multiplied in (term, *scaled(term).factors):
                node = maker(multiplied, "Mul", "Pow")
                yield from ((x, term, (x,)) for x in (node.inputs if node is not None else ()) if x is not None)


RULES = (_Gelu.rule(),)
