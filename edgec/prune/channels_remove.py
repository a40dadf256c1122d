"""Take channels out of a network."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.fuse.rule import lazily
from edgec.graph.rewrite import constant
from edgec.graph.store import shape_of
from edgec.prune.channels_groups import Channels, Mask, unused


def remove(model: ir.Model, channels: Channels, kept: Mask) -> None:
    """Take channels out of constants, shapes, and numbers that count them, in place.

    Args:
        model: whose constants still have all channels; those left are taken out when they are read.
        channels: of this very model.
        kept: by label.
    """
    for value, axes in channels.cuts().items():
        places = {axis: np.flatnonzero(kept[labels]) for axis, labels in axes.items() if not kept[labels].all()}
        if places and value.const_value is not None:
            shape = [len(places.get(axis, range(size))) for axis, size in enumerate(shape_of(value.const_value))]
            value.const_value = lazily(value, shape, partial(_taken, places=places))
            value.shape = ir.Shape(shape)
    for value, layout in channels.trace.layouts.items():
        if value.shape is not None:
            sizes = list(value.shape)
            sizes[layout.axis] = int(kept[channels.root[layout.labels]].sum())
            value.shape = ir.Shape(sizes)
    numbers: dict[tuple[ir.Node, int | None], dict[int, int]] = {}
    for count in channels.trace.counts:
        left = int(kept[channels.root[count.labels]].sum())
        numbers.setdefault((count.node, count.index), {})[count.position] = left
    for (node, index), found in numbers.items():
        if index is None:
            node.attributes["group"] = ir.AttrInt64("group", found[0])
        else:
            _recount(model.graph, node, index, found)


def _taken(array: NDArray[Any], places: Mapping[int, NDArray[np.int64]]) -> NDArray[Any]:
    for axis, indices in places.items():
        array = array.take(indices, axis)
    return array


def _recount(graph: ir.Graph, node: ir.Node, index: int, numbers: Mapping[int, int]) -> None:
    """Give a node a constant of its own with other numbers in it, unless they are the same."""
    old = node.inputs[index] if index < len(node.inputs) else None
    array = (
        np.zeros(len(numbers), np.int64) if old is None or old.const_value is None else old.const_value.numpy().copy()
    )
    before = array.copy()
    array[list(numbers)] = list(numbers.values())
    if np.array_equal(array, before):
        return
    name = unused(graph, f"{node.name}_sizes_{index}")
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, constant(graph, name, array))
    node.attributes.pop("num_outputs", None)
    if old is not None and not old.uses() and not old.is_graph_output():
        del graph.initializers[str(old.name)]
