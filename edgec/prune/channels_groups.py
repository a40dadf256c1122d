"""Channels of a network in groups: those of a group are made, and so counted, together."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.prune.channels_linear import LAYERS
from edgec.prune.channels_rules import RULES
from edgec.prune.channels_trace import Filter, Labels, Trace, follow

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Group:
    """The channels that some layers give.

    Args:
        layers: names of the nodes that the channels are outputs of, in the order of the graph.
        channels: the label of each channel, in the order of the first layer's outputs.
        removable: which of them may go.
        positions: outputs that a channel takes up in a layer, at least.
        refused: why none may go; None if some may.
    """

    layers: tuple[str, ...]
    channels: Labels
    removable: Mask
    positions: int
    refused: str | None

    @property
    def name(self) -> str:
        """Return the name of the group: that of its first layer."""
        return self.layers[0]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a network.

    Args:
        trace: where they lie.
        root: the label that stands for each label; those with the same one are one channel.
        groups: in the order of the graph.
    """

    trace: Trace
    root: Labels
    groups: tuple[Group, ...]

    def cuts(self) -> dict[ir.Value, dict[int, Labels]]:
        """Return the labels along the axes of each constant that shrinks with channels."""
        return {
            value: {axis: self.root[labels] for axes in cuts.values() for axis, labels in axes.items()}
            for value, cuts in self.trace.cuts.items()
        }


def find_groups(model: ir.Model, skip: Collection[str] = ()) -> Channels:
    """Find the channels of a canonical network, and which can only go together.

    Args:
        model: not changed; no weight is read. Layers have names, and shapes are inferred.
        skip: layers that keep all channels that they give.
    """
    trace = follow(model, RULES, tuple(LAYERS))
    root = components(trace.born, trace.ties)
    reasons: dict[int, str] = {}
    asked = [(each.labels, "asked for") for each in trace.filters if each.read is None and each.layer.name in skip]
    for labels, why in (*asked, *trace.held):
        for label in np.unique(root[labels]).tolist():
            reasons.setdefault(label, why)
    given = [each for each in trace.filters if each.read is None and each.labels.size]
    family = components(trace.born, [*trace.ties, *((each.labels[:-1], each.labels[1:]) for each in given)])
    members: dict[int, list[Filter]] = {}
    for each in given:
        members.setdefault(int(family[each.labels[0]]), []).append(each)
    return Channels(trace, root, tuple(_group(filters, root, reasons) for filters in members.values()))


def _group(filters: Sequence[Filter], root: Labels, reasons: Mapping[int, str]) -> Group:
    labels = [root[each.labels] for each in filters]
    found, first = np.unique(np.concatenate(labels), return_index=True)
    channels = found[np.argsort(first)]
    removable = np.array([label not in reasons for label in channels.tolist()])
    refused = None
    if not removable.any():
        refused = reasons[int(channels[0])]
    elif len(channels) == 1:
        refused = "all that it gives goes together"
    positions = min(len(each) // len(np.unique(each)) for each in labels)
    names = tuple(dict.fromkeys(str(each.layer.name) for each in filters))
    return Group(names, channels, removable, positions, refused)


def unused(graph: ir.Graph, name: str) -> str:
    """Return a name that no constant of a graph has, `name` if possible."""
    while name in graph.initializers:
        name += "_"
    return name


def components(count: int, ties: Sequence[tuple[Labels, Labels]]) -> Labels:
    """Return the smallest label that each label is tied to, directly or through others."""
    root = np.arange(count)
    if not ties:
        return root
    first, second = (np.concatenate(side) for side in zip(*ties, strict=True))
    while True:
        low = np.minimum(root[first], root[second])
        before = root.copy()
        for side in (first, second):
            np.minimum.at(root, before[side], low)
            np.minimum.at(root, side, low)
        root = root[root]
        if np.array_equal(root, before):
            return root
