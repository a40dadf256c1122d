"""Follow channels through a network: which are one channel, where their numbers are, and which must stay.

A channel is born as an output of a layer (Conv, ConvTranspose, Gemm, MatMul) and has a *label* there, an integer of its
own. Rules (`channels_rules.py`, `channels_linear.py`, `channels_shapes.py`), one for each operator, say where labels
lie in what an operator gives, and *tie* labels that can only go together: both sides of a sum, inputs and outputs of a
depthwise convolution. What a rule does not know *holds* the labels that reach it, with the reason.

So there is one label for each position of the one axis of a value that may shrink, and operators that move channels
about (Concat, Split, Flatten, a shuffle) only move labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.rule import is_constant
from edgec.prune.channels_known import HeldError

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the channels of a value lie.

    Args:
        axis: that they lie along.
        labels: of each position.
    """

    axis: int
    labels: Labels


@dataclass(frozen=True, eq=False)
class Filter:
    """The axis of a layer's weight that channels lie along.

    Args:
        layer: the node.
        weight: its weight.
        axis: of the weight.
        labels: of each position; of an axis 1 that all groups share, for one group after the other.
        read: what the layer reads, if the channels are its inputs; None if they are its outputs.
        groups: that the layer's first axis is cut into.
    """

    layer: ir.Node
    weight: ir.Value
    axis: int
    labels: Labels
    read: ir.Value | None = None
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Count:
    """A number in the graph that says how many of some channels there are.

    Args:
        node: that has it.
        labels: of the channels.
        index: of the constant input that holds it; None for the attribute `group`.
        position: in that input.
    """

    node: ir.Node
    labels: Labels
    index: int | None = None
    position: int = 0


class Rule(Protocol):
    """How an operator treats channels; raises `HeldError` where it needs all of them."""

    def __call__(self, trace: "Trace", node: ir.Node, /) -> None:
        """Put down where channels lie in the node's outputs and constants."""


@dataclass(eq=False)
class Trace:
    """What rules put down.

    Args:
        layouts: of values that have channels.
        cuts: of constants, for each (node, index of its input): the labels along some of the axes.
        filters: of layers.
        counts: to be kept right.
        ties: pairs of equally long label arrays; the same positions go together.
        held: labels that must stay, and why.
    """

    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    cuts: dict[ir.Value, dict[tuple[ir.Node, int], dict[int, Labels]]] = field(default_factory=dict)
    filters: list[Filter] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    ties: list[tuple[Labels, Labels]] = field(default_factory=list)
    held: list[tuple[Labels, str]] = field(default_factory=list)
    born: int = 0

    def fresh(self, count: int) -> Labels:
        """Return labels that nobody has."""
        self.born += count
        return np.arange(self.born - count, self.born)

    def staying(self, count: int, why: str) -> Labels:
        """Return labels of channels that never go."""
        labels = self.fresh(count)
        self.held.append((labels, why))
        return labels

    def tie(self, *labels: Labels) -> None:
        """Let the same positions of equally long arrays go together."""
        self.ties += [(labels[0], other) for other in labels[1:]]

    def give(self, value: ir.Value, axis: int, labels: Labels) -> None:
        """Say where the channels of a value lie."""
        self.layouts[value] = Layout(axis, labels)

    def cut(self, node: ir.Node, index: int, axes: dict[int, Labels]) -> None:
        """Say which channels lie along axes of a constant that a node reads.

        Raises:
            HeldError: it is no constant.
        """
        value = node.inputs[index]
        if value is None or not is_constant(value):
            raise HeldError(f"input {index} is not a constant")
        self.cuts.setdefault(value, {})[node, index] = axes

    def layout(self, value: ir.Value | None) -> Layout | None:
        """Return where the channels of a value lie, if it has any."""
        return None if value is None else self.layouts.get(value)

    def source(self, node: ir.Node) -> Layout:
        """Return where the channels of a node's first input lie.

        Raises:
            HeldError: they reach another input.
        """
        layout = self.layout(node.inputs[0])
        if layout is None or any(self.layout(value) for value in node.inputs[1:]):
            raise HeldError("they are not only its first input")
        return layout


def follow(model: ir.Model, rules: dict[str, Rule], layers: Sequence[str]) -> Trace:
    """Follow the channels of a canonical network through its main graph.

    Args:
        model: not changed; no weight is read.
        rules: by operator.
        layers: operators that channels are born in; all others are looked at when channels reach them.
    """
    trace, graph = Trace(), model.graph
    for node in graph:
        found = [layout for value in node.inputs if (layout := trace.layout(value))]
        if not found and node.op_type not in layers:
            continue
        rule = _unknown if node.domain else rules.get(node.op_type, _unknown)
        try:
            rule(trace, node)
        except HeldError as error:
            why = f"{node.op_type} {node.name}: {error}"
            trace.held += [(layout.labels, why) for layout in found]
    for value, layout in trace.layouts.items():
        if value.is_graph_output():
            trace.held.append((layout.labels, f"{value.name} is an output"))
    for node in graph.all_nodes():
        if node.graph is not graph:
            found = [layout for value in node.inputs if (layout := trace.layout(value))]
            trace.held += [(layout.labels, f"{node.op_type} {node.name} is in a branch or a loop") for layout in found]
    _agree(trace)
    return trace


def _unknown(trace: Trace, node: ir.Node) -> None:  # noqa: ARG001  a rule that knows nothing
    raise HeldError("what it does with channels is not known")


def _agree(trace: Trace) -> None:
    """Let all who read a constant cut it alike; what somebody else reads as a whole stays whole."""
    for value, cuts in trace.cuts.items():
        other = next((use.node for use in value.uses() if (use.node, use.idx) not in cuts), None)
        for axis in {axis for axes in cuts.values() for axis in axes}:
            labels = [axes[axis] for axes in cuts.values() if axis in axes]
            trace.tie(*labels)
            if other is not None:
                trace.held.append((labels[0], f"{other.op_type} {other.name} reads {value.name} too"))
            elif value.is_graph_output():
                trace.held.append((labels[0], f"{value.name} is an output"))
            elif len(labels) < len(cuts):
                trace.held.append((labels[0], f"{value.name} is read in different ways"))
