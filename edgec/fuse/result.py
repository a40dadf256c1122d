"""What fusing a graph did, and what it nearly did."""

from itertools import groupby

import msgspec


class Fused(msgspec.Struct, frozen=True):
    """What one rule did.

    Args:
        rule: the name of its file.
        title: what it does, for people.
        nodes: names of the nodes that it made, or that it removed where nothing stands in their place.
    """

    rule: str
    title: str
    nodes: tuple[str, ...]


class Missed(msgspec.Struct, frozen=True):
    """A place where a rule nearly applied.

    Args:
        rule: the name of its file.
        node: the node where its pattern ends.
        reason: what is missing, or why the rule refused.
    """

    rule: str
    node: str
    reason: str


class Fusions(msgspec.Struct, frozen=True):
    """What a stage of fusion did to a graph.

    Args:
        stage: "canonical", or the backend that the graph was lowered for.
        fused: one entry for each rule that applied somewhere, in the order in which rules run.
        missed: near misses in the graph that came out, by rule.
    """

    stage: str
    fused: tuple[Fused, ...] = ()
    missed: tuple[Missed, ...] = ()


def rows(fusions: Fusions) -> list[tuple[str, str, str]]:
    """Return the lines of a table for people: rule, what happened, where or why.

    Near misses of one rule for one reason share a line.
    """
    done = [(entry.rule, f"{len(entry.nodes)} fused", _few(entry.nodes)) for entry in fusions.fused]
    ordered = sorted(fusions.missed, key=lambda miss: (miss.rule, miss.reason))
    nearly = []
    for (rule, reason), group in groupby(ordered, key=lambda miss: (miss.rule, miss.reason)):
        nodes = tuple(miss.node for miss in group)
        nearly.append((rule, f"{len(nodes)} nearly", f"{reason} ({_few(nodes)})"))
    return [*done, *nearly]


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, and {len(names) - 3} more"
