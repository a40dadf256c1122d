"""What a network and each of its channels cost, read off shapes: no weight is read."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.errors import UsageError
from edgec.fuse.linear import LINEAR
from edgec.fuse.rule import static_shape
from edgec.graph.store import shape_of
from edgec.prune.channels_groups import Channels, Mask
from edgec.prune.channels_result import Cost

Of = Literal["parameters", "multiply_adds", "channels"]


def cost_of(model: ir.Model) -> Cost:
    """Return what a network costs; of a pruned one this is the prediction before anything is built."""
    tensors = [
        tensor
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.dtype.is_floating_point()
    ]
    work = [_multiply_adds(node) for node in model.graph.all_nodes() if node.op_type in LINEAR and not node.domain]
    known = [number for number in work if number is not None]
    return Cost(sum(prod(shape_of(each)) for each in tensors), sum(known) if len(known) == len(work) else None)


def _multiply_adds(node: ir.Node) -> int | None:
    given, weight, result = _sizes(node.inputs[0]), _sizes(node.inputs[1]), _sizes(node.outputs[0])
    if given is None or weight is None or result is None:
        return None
    if node.op_type == "Conv":  # (out, in / groups, ...): each output sums over all axes but the first
        return prod(result) * prod(weight[1:])
    if node.op_type == "ConvTranspose":  # (in, out / groups, ...): each input is added to as many outputs
        return prod(given) * prod(weight[1:])
    return prod(result) * (given[0] if node.attributes.get_int("transA", 0) == 1 else given[-1])


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of a value for one sample; None if others than the first are open."""
    if value is not None and value.const_value is not None:
        return shape_of(value.const_value)
    if value is None or value.shape is None or len(value.shape) == 0 or isinstance(value.shape[0], int):
        return static_shape(value)
    rest = [size for size in value.shape[1:] if isinstance(size, int)]
    return (1, *rest) if len(rest) == len(value.shape) - 1 else None


@dataclass(frozen=True, eq=False)
class Prices:
    """What is counted.

    Args:
        numbers: how much each number of a constant counts.
        channels: how much each channel counts by itself.
    """

    numbers: dict[ir.Value, float]
    channels: float = 0.0


def prices_of(model: ir.Model, of: Of) -> Prices:
    """Return what numbers and channels of a network count.

    Args:
        model: its main graph counts.
        of: "multiply_adds" counts a weight as often as it is multiplied.

    Raises:
        UsageError: how often weights are multiplied depends on sizes that are open.
    """
    if of == "channels":
        return Prices({}, 1.0)
    values = model.graph.initializers.values()
    floats = [
        value for value in values if value.const_value is not None and value.const_value.dtype.is_floating_point()
    ]
    if of == "parameters":
        return Prices(dict.fromkeys(floats, 1.0))
    numbers = dict.fromkeys(floats, 0.0)
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in LINEAR and not node.domain else None
        if weight in numbers and weight.const_value is not None:
            work = _multiply_adds(node)
            if work is None:
                raise UsageError(
                    "the network's multiply-adds depend on sizes that are open",
                    hint='state them with --input, or remove a share of the "parameters"',
                )
            numbers[weight] += work / max(1, weight.const_value.size)
    return Prices(numbers)


def cost_left(channels: Channels, prices: Prices, kept: Mask) -> float:
    """Return what counts when only some channels are left.

    Args:
        channels: of the network that the prices are of.
        prices: of its numbers and channels.
        kept: by label.
    """
    cuts = channels.cuts()
    total = prices.channels * sum(int(kept[group.channels].sum()) for group in channels.groups)
    for value, price in prices.numbers.items():
        axes = cuts.get(value, {})
        sizes = [int(kept[axes[axis]].sum()) if axis in axes else size for axis, size in enumerate(_shape(value))]
        total += price * prod(sizes)
    return total


def costs(channels: Channels, prices: Prices) -> NDArray[np.float64]:
    """Return what each channel alone frees when it goes, by label."""
    total = np.full(channels.trace.born, prices.channels)
    for value, axes in channels.cuts().items():
        shape, price = _shape(value), prices.numbers.get(value, 0.0)
        for axis, labels in axes.items():
            np.add.at(total, labels, price * prod(shape[:axis]) * prod(shape[axis + 1 :]))
    return total


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return shape_of(value.const_value)
