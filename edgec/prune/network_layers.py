"""Layers of a network whose weights may become 0, and these weights as matrices.

Inputs are in the order (places of the kernel, channels), so that every M of N:M are channels that the same place of a
kernel reads: what sparse kernels skip.

Source: NVIDIA TensorRT documentation, "Structured Sparsity": for each output channel and each place of a kernel, two of
every four input channels are zero, and there is a multiple of four of them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.graph.branches import inner_nodes
from edgec.graph.store import shape_of
from edgec.prune.pattern import Pattern
from edgec.quantize.operators import ANCHORS
from edgec.quantize.placement import weight_of


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer whose weights may become 0.

    Args:
        node: the layer.
        weight: its own constant.
        axes: of the weight, outputs and inputs.
        groups: whose outputs read inputs of their own.
        outputs: of all groups.
        inputs: channels of one group.
        places: of the kernel; 1 for products.
    """

    node: ir.Node
    weight: ir.Value
    axes: tuple[int, int]
    groups: int
    outputs: int
    inputs: int
    places: int

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        assert self.weight.const_value is not None
        return shape_of(self.weight.const_value)

    @property
    def columns(self) -> int:
        """Inputs of one output: every channel of its group, at every place."""
        return self.inputs * self.places

    def matrices(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Return a weight as (groups, outputs of a group, places x channels), a copy."""
        rows = np.moveaxis(array, self.axes, (0, -1))
        return np.array(rows, np.float32, order="C").reshape(self.groups, -1, self.columns)

    def weights(self, matrices: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what `matrices` was given, contiguous."""
        sizes = [size for axis, size in enumerate(self.shape) if axis not in self.axes]
        rows = matrices.reshape(self.outputs, *sizes, self.inputs)
        return np.ascontiguousarray(np.moveaxis(rows, (0, -1), self.axes))


def find_layers(
    model: ir.Model, pattern: Pattern, skip: Collection[str] = ()
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Return the layers that can have a pattern, in graph order, and why others with constant weights stay dense.

    Args:
        model: canonical; no weights are read.
        pattern: of the zeros.
        skip: names of layers that stay dense.
    """
    found, dense = [], dict[str, str]()
    for node in model.graph:
        if node.op_type not in ANCHORS or node.domain or node.inputs[1] is None or not node.inputs[1].is_initializer():
            continue
        layer = "asked for" if node.name in skip else _layer(node)
        why = layer if isinstance(layer, str) else _refusal(layer, pattern)
        if isinstance(layer, Layer) and why is None:
            found.append(layer)
        else:
            dense[str(node.name)] = str(why)
    for node, outer in inner_nodes(model.graph):
        if node.op_type in ANCHORS and not node.domain and weight_of(node) is not None:
            dense[str(node.name)] = f"inside {outer.op_type}"
    return tuple(found), dense


def _layer(node: ir.Node) -> Layer | str:
    """Return a node with a constant weight as a layer, or why its weights stay as they are."""
    weight, own = node.inputs[1], weight_of(node)
    if own is None or weight is None or weight.const_value is None:
        return "its weight is no float32 matrix of its own"
    if node.inputs[0] is None or node.inputs[0].is_initializer():
        return "what it multiplies is a constant, too"
    if len(weight.uses()) > 1:
        other = next(str(use.node.name) for use in weight.uses() if use.node is not node)
        return f"its weight is that of {other}, too"
    sizes, groups = shape_of(weight.const_value), node.attributes.get_int("group", 1)
    if node.op_type == "ConvTranspose" and groups > 1:
        return "a transposed convolution in groups"
    axes = (own.axis, 1 - own.axis)
    return Layer(node, weight, axes, groups, sizes[axes[0]], sizes[axes[1]], prod(sizes[2:]))


def _refusal(layer: Layer, pattern: Pattern) -> str | None:
    """Return why a layer cannot have a pattern, or had better not; None where it can."""
    if layer.groups > 1 and layer.inputs == 1:
        return "depthwise: its outputs read one channel each"
    if pattern.block is not None and layer.inputs % pattern.block[1]:
        each = " for each group" if layer.groups > 1 else ""
        return f"{pattern} takes blocks of {pattern.block[1]} input channels, it has {layer.inputs}{each}"
    return None
