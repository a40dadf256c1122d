"""Fusion: rules that make a graph smaller and faster without changing what it computes, a file each.

The folder is the registry; `rule.py` says how a rule is written.
"""

import pkgutil
from importlib import import_module
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgec.errors import EdgecError
from edgec.fuse.result import Fused, Fusions, Missed, rows
from edgec.fuse.rewriting import rewrite
from edgec.fuse.rule import PHASES, Stage
from edgec.fuse.surgery import infer_shapes, tidy
from edgec.fuse.tracer import NearMisses

__all__ = ["Fused", "Fusions", "Missed", "fuse", "rows", "rules"]

_FRAMEWORK = (
    *("emitting", "heads", "linear", "norms", "packing", "result", "rewriting", "rule", "scores", "surgery", "terms"),
    "tracer",
)
_ROUNDS = 100
_Near = list[tuple[str, str]]


def rules(stage: Stage | None = None) -> dict[str, Any]:
    """Return name -> module of each rule, of one stage or of all, in the order in which they run."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _FRAMEWORK)
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    chosen = {name: module for name, module in modules.items() if stage in (None, module.STAGE)}
    return dict(sorted(chosen.items(), key=lambda item: PHASES.index(item[1].PHASE)))


def fuse(model: ir.Model, stage: Stage) -> Fusions:
    """Apply all rules of a stage to a model, in place, until none applies any more.

    Inputs and outputs keep their names, types and order.

    Args:
        model: the graph; functions are inlined, constants become initializers, nodes without a name get one.
        stage: "canonical", or the backend that the graph is lowered for.

    Returns:
        What fused, and what nearly did.

    Raises:
        EdgecError: rules undo each other.
    """
    return _run(model, stage, rules(stage))


def _run(model: ir.Model, stage: str, chosen: dict[str, Any]) -> Fusions:
    if model.functions:
        InlinePass()(model)
    tidy(model)
    infer_shapes(model)
    fused: dict[str, list[str]] = {name: [] for name in chosen}
    missed: dict[str, _Near] = {}
    for last in range(1, len(PHASES) + 1):
        due = {name: module for name, module in chosen.items() if module.PHASE in PHASES[:last]}
        missed = _settle(model, due, fused)
    return Fusions(
        stage=stage,
        fused=tuple(
            Fused(name, chosen[name].TITLE, tuple(dict.fromkeys(nodes))) for name, nodes in fused.items() if nodes
        ),
        missed=tuple(Missed(name, node, why) for name, near in missed.items() for node, why in near),
    )


def _settle(model: ir.Model, due: dict[str, Any], fused: dict[str, list[str]]) -> dict[str, _Near]:
    """Apply rules until a round changes nothing, and return the near misses of that round."""
    for _ in range(_ROUNDS):
        results = {name: _apply(model, module) for name, module in due.items()}
        for name, (made, _) in results.items():
            fused[name] += made
        if not any(made for made, _ in results.values()):
            return {name: near for name, (_, near) in results.items()}
    busy = ", ".join(name for name, (made, _) in results.items() if made)
    raise EdgecError(f"fusion rules undo each other: {busy}")


def _apply(model: ir.Model, module: Any) -> tuple[list[str], _Near]:
    """Apply one rule to the whole model; return what it made, and its near misses."""
    near: _Near = []
    if hasattr(module, "apply"):
        made = list(module.apply(model, lambda node, reason: near.append((str(node.name), reason))))
        return made, list(dict.fromkeys(near))
    tracer = NearMisses(getattr(module, "ANCHORS", ()))
    made = rewrite(model, list(module.RULES), tracer)
    if made:
        tidy(model)
    return made, tracer.found()
