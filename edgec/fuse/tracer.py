"""Near misses: where most of a rule's pattern was found, and what was found instead of the rest."""

import re
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnxscript.rewriter.pattern import MatchingTracer, MatchResult, MatchStatus, RewriteRule

_WITHOUT_REASON = ("", "Condition function check failed")
_LONGEST = 160
_PLAIN = (
    (r"^OpType mismatch: expected (.+), got (.+)", r"expected \1, found \2"),
    (r"^Constant value mismatch: expected (.+), got (.+)", r"expected the number \1, found \2"),
    (r"^Value (.+) is not in the graph .+", r"\1 is made outside this subgraph"),
    (r"^Mismatch: .* does not match uncomputed IR value", "expected an operator, found an input or a constant"),
    (r"^Mismatch: .* does not match None", "an input is missing"),
    (r"^Binding failure: .*", "two different values where the pattern has one"),
)
"""What the matcher says, and what people understand."""


@dataclass(frozen=True, eq=False)
class _Miss:
    node: ir.Node
    reason: str
    matched: frozenset[ir.Node]
    refused: bool

    @property
    def score(self) -> tuple[bool, int]:
        return self.refused, len(self.matched)


class NearMisses(MatchingTracer):
    """Keeps the best partial match that ends at each node.

    Args:
        anchors: operators that are worth a near miss as soon as they are found.
    """

    def __init__(self, anchors: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._anchors = anchors
        self._best: dict[ir.Node, _Miss] = {}

    def log(
        self,
        rule: RewriteRule,
        container: ir.Graph | ir.Function,  # noqa: ARG002  the base class says so
        node: ir.Node,
        match_result: MatchResult,
        status: MatchStatus,
    ) -> None:
        """Take note of an attempt to match."""
        if status is MatchStatus.SUCCESS:
            self._best.pop(node, None)
            return
        refused = status is MatchStatus.CONDITION_FAILED
        if not (self._refusal(match_result) if refused else self._nearly(rule, node, match_result)):
            return
        reason = match_result.reason if refused else _words(match_result)
        new = _Miss(node, reason, frozenset(match_result.nodes), refused)
        best = self._best.get(node)
        if best is None or new.score > best.score:
            self._best[node] = new
        elif new.score == best.score:
            self._best[node] = replace(best, reason=_either(best.reason, new.reason))

    @staticmethod
    def _refusal(result: MatchResult) -> bool:
        return result.reason not in _WITHOUT_REASON

    def _nearly(self, rule: RewriteRule, node: ir.Node, result: MatchResult) -> bool:
        pattern = rule._target_pattern  # noqa: SLF001  rules do not say otherwise how large they are
        if not pattern.has_single_output_node:
            return False
        found = len(result.nodes)
        return (found >= 2 and 2 * found >= pattern.num_nodes()) or (found >= 1 and node.op_type in self._anchors)

    def found(self) -> list[tuple[str, str]]:
        """Return node name and reason of each near miss, in the order of the graph.

        Of partial matches that share operators only the largest is kept.
        """
        kept: dict[ir.Node, _Miss] = {}
        covered: set[ir.Node] = set()
        for miss in sorted(self._best.values(), key=lambda miss: miss.score, reverse=True):
            if miss.refused or not covered & miss.matched:
                covered |= miss.matched
                kept[miss.node] = miss
        return [(str(node.name), kept[node].reason) for node in self._best if node in kept]


def _words(result: MatchResult) -> str:
    """Return what a partial match lacks, in a line that is the same in every run."""
    reason = re.sub(r"anonymous:\d+", "operand", " ".join(result.reason.split())).rstrip(".")
    for pattern, words in _PLAIN:
        reason = re.sub(pattern, words, reason)
    where = next((item for item in result.failure_nodes_and_values if isinstance(item, ir.Node)), None)
    at = "" if where is None or str(where.name) in reason else f" at {where.name}"
    return reason[:_LONGEST] + at


def _either(first: str, second: str) -> str:
    """Return one reason for two that found the same where they expected different operators; else the first."""
    a, b = (re.fullmatch(r"expected (.+), (found .+)", reason) for reason in (first, second))
    if a is None or b is None or a[2] != b[2] or b[1] in a[1].split(" or "):
        return first
    return f"expected {a[1]} or {b[1]}, {a[2]}"
