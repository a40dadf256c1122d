"""How a fusion rule is written, and what rules share.

A rule is one file in this folder; its name is the rule's. It says

    TITLE = "BatchNormalization into Conv"     # for people
    STAGE: Stage = "canonical"                 # the result is standard ONNX; or the backend that takes the result
    PHASE: Phase = "fuse"                      # when it runs, see `PHASES`

and is either a pattern, written with `onnxscript.rewriter`:

    class IntoConv(Fusion):
        def pattern(self, op, x): ...                  # the operators that are replaced
        def check(self, context, x, **_): ...          # a `MatchResult`; refuses with `.fail("why")`
        def rewrite(self, op, x, **_): ...             # the operators that replace them

    RULES = (IntoConv.rule(),)                 # or `RewriteRuleSet([...], commute=True)`; the first that applies wins
    ANCHORS = ("BatchNormalization",)          # optional: operators worth a near miss wherever they are left

or, where no pattern can say it, a pass over the whole model, subgraphs included:

    def apply(model: ir.Model, near: Near) -> list[str]: ...

which returns the names of what it made or removed, nothing if the model is as it was, and calls `near(node, why)` for
what it nearly did (`surgery.py` has what passes need). `edgec.fuse.fuse` does the rest:

- Before any rule runs, functions are inlined, constants are initializers, nodes and values have unique names, and
  shapes are inferred; sizes that are not known have names of their own, so that equal names mean equal sizes.
- Rules run to a fixed point, also in the bodies of If and Loop; a pattern never reaches across a graph's border. No
  rule may match its own result.
- Every matched value but the pattern's outputs must have no other use, or the rule does not apply (and the report says
  which value); `remove_nodes = False` in the class takes that back, and what is still used stays.
- `check` decides: a refusal with a reason is a near miss, `MatchResult().fail()` without one says "not my pattern" and
  is silent. A `MatchFailureError` (as `constant_of` raises) is a refusal too. `rewrite` must not fail.
- A partial match is a near miss if at least half of the pattern's operators were found (two or more), or if the last
  one is in `ANCHORS`.
- Results take the names, types and shapes of the values that they replace; a node of the same type as one that it
  replaces keeps its name, others are named after where they are; metadata is merged. Initializers made with `derived`
  or `op.initializer` keep the name that they ask for, if what had it is gone.
- A pattern with several outputs is looked for by brute force, and without near misses: write a pass for those.

Tests of a rule (`tests/fuse/test_<rule>.py`) show that it fires on what exporters write, that it refuses and why, and
that outputs stay what they were. `tests/fuse/test_rules.py` runs over every file here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter._basics import MatchFailureError  # offered nowhere else
from onnxscript.rewriter.pattern import MatchResult, RewriteRule

__all__ = [
    "PHASES",
    "Fusion",
    "MatchFailureError",
    "MatchResult",
    "Near",
    "PassRule",
    "PatternRule",
    "Phase",
    "Stage",
    "constant_of",
    "derived",
    "is_constant",
    "lazily",
    "node_of",
    "other_use",
    "rank_of",
    "scalar_of",
    "single_use",
    "small",
    "static_shape",
]

Stage = Literal["canonical", "onnx_cpu", "openvino", "tensorrt"]
Phase = Literal["clean", "fuse", "join", "fold"]
PHASES: tuple[Phase, ...] = ("clean", "fuse", "join", "fold")
"""Each phase runs to a fixed point together with those before it, so that a rule finds what they left.

- clean: the same operators, fewer of them.
- fuse: several operators become one.
- join: what was fused becomes part of something larger (attention, packed matrices, skip and norm).
- fold: arithmetic goes into weights, where no pattern finds it any more.
"""

Near = Callable[[ir.Node, str], None]
"""Records a near miss: the node and the reason."""


class Fusion(ABC):
    """What is replaced, when, and by what; `rule()` makes the rewriter's rule of it.

    Attributes:
        remove_nodes: whether inner values may have no other use.
    """

    remove_nodes = True

    @abstractmethod
    def pattern(self, *args: Any, **kwargs: Any) -> Any:
        """Build the pattern: takes the pattern builder and variables, returns the outputs."""

    def check(self, *args: Any, **kwargs: Any) -> MatchResult:  # noqa: ARG002  rules name what they need
        """Return whether a match is taken: takes the context, and variables and named outputs by name."""
        return MatchResult()

    @abstractmethod
    def rewrite(self, *args: Any, **kwargs: Any) -> Any:
        """Build the replacement: takes the builder, and variables and named outputs by name; returns the outputs."""

    @classmethod
    def rule(cls, *args: Any) -> RewriteRule:
        """Return the rule; arguments are the class's own."""
        self = cls(*args)

        def check(context: Any, **bindings: Any) -> MatchResult:
            result = self.check(context, **bindings)
            reason = other_use(context.nodes, context.output_values) if result and cls.remove_nodes else None
            return result.fail(reason) if reason else result

        # The rewriter would look at other uses before `check` says whether it is about this pattern at all.
        return RewriteRule(self.pattern, self.rewrite, check, name=cls.__name__, remove_nodes=False)


def other_use(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> str | None:
    """Say which inner value of a match is read by someone else; None if all can go."""
    for value in (value for node in nodes for value in node.outputs if value not in outputs):
        if value.is_graph_output():
            return f"{value.name} is an output of the graph"
        other = next((use.node for use in value.uses() if use.node not in nodes), None)
        if other is not None:
            return f"{value.name} is also read by {other.name}"
    return None


class PatternRule(Protocol):
    """A rule's file that matches patterns."""

    TITLE: str
    STAGE: Stage
    PHASE: Phase
    RULES: Iterable[RewriteRule]


class PassRule(Protocol):
    """A rule's file that goes over the whole model."""

    TITLE: str
    STAGE: Stage
    PHASE: Phase

    def apply(self, model: ir.Model, near: Near) -> list[str]:
        """Change the model, and return the names of what was made or removed."""
        ...


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is an initializer that no caller can override."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def constant_of(value: ir.Value | None, what: str) -> NDArray[Any]:
    """Return the data of a constant.

    Raises:
        MatchFailureError: it is none; inside `check`, this refuses the match.
    """
    if value is None or not is_constant(value):
        raise MatchFailureError(f"{what} is not a constant", *([] if value is None else [value]))
    return np.asarray(value.const_value.numpy())  # type: ignore[union-attr]


def scalar_of(value: ir.Value | None) -> float | None:
    """Return the number that a constant of one element holds; None for anything else."""
    if value is None or not is_constant(value) or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().item())


def single_use(value: ir.Value | None) -> bool:
    """Return whether one node reads the value, once, and it is no output of a graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def node_of(value: ir.Value) -> ir.Node:
    """Return the node that makes a value which a pattern says is made by one."""
    node = value.producer()
    assert node is not None
    return node


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of a value if all are known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of a value's axes, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def derived(
    op: Any,
    source: ir.Value,
    shape: Iterable[int],
    compute: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    name: str | None = None,
) -> ir.Value:
    """Return an initializer that is computed from another constant whenever it is read: no copy stays in memory.

    Args:
        op: the builder that `rewrite` gets.
        source: the constant; the new one has its type and its metadata.
        shape: of the result.
        compute: makes the new data from the old; its result is rounded to the old type.
        name: of the new initializer; the old one's if not given.
    """
    value: ir.Value = op.initializer(lazily(source, shape, compute), name=name or source.name)
    value.metadata_props.update(source.metadata_props)
    return value


def lazily(
    source: ir.Value,
    shape: Iterable[int],
    compute: Callable[[NDArray[Any]], NDArray[Any]],
    dtype: ir.DataType | None = None,
) -> ir.LazyTensor:
    """Return the tensor that `compute` makes of a constant's data, computed whenever it is read."""
    tensor = source.const_value
    assert tensor is not None
    kind = dtype or tensor.dtype

    def load() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(compute(np.asarray(tensor.numpy())), dtype=kind.numpy()), dtype=kind)

    return ir.LazyTensor(load, kind, ir.Shape(list(shape)))


def small(op: Any, name: str, array: NDArray[Any]) -> ir.Value:
    """Return an initializer that holds a small array."""
    value: ir.Value = op.initializer(ir.tensor(array), name=name)
    return value
