"""The pass that moves what is hard to round from activations into weights.

Some inputs of a product are far larger than others, and one scale for all of them leaves few integers to the small
ones. Dividing each input by a scale of its own, and multiplying its row of the weight by it, leaves the product as it
is and makes activations alike, while weights, which have a scale for each output, take it well. How much is moved is
tried for each activation on samples; where it does not help, nothing is. Scales are powers of two, so that no number is
rounded by the move itself.

Source: Xiao et al. 2023, SmoothQuant (arXiv:2211.10438), with the search of Lin et al. 2024, AWQ (arXiv:2306.00978).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgec.calibrate.arrays import Batch
from edgec.calibrate.run import run
from edgec.graph.rewrite import array_of, constant, sweep, users
from edgec.quantize.placement import Placement

Array = NDArray[np.float32]

_POWERS = (0.5, 0.6, 0.7, 0.8, 0.9)
# Rows of each activation that the search sees, and those taken of one batch.
_ROWS, _ROWS_OF_A_BATCH = 512, 64
# A multiplication that is left in the graph must take at least this share of the error away.
_WORTH = 0.3
_TINY = 1e-6


@dataclass(frozen=True)
class Smoothed:
    """An activation whose channels were scaled.

    Args:
        value: its name.
        power: how much was moved: 0 nothing, 1 all.
        error: what is left of the error of its products.
        folded: whether a norm takes the scales; else there is a multiplication more.
    """

    value: str
    power: float
    error: float
    folded: bool


def smooth(
    model: ir.Model, placement: Placement, batches: Iterable[Batch], *, symmetric: bool = False
) -> list[Smoothed]:
    """Scale the channels of activations in front of products, where that makes rounding hurt less.

    Memory is bounded by 512 rows of each activation.

    Args:
        model: a canonical float graph; changed in place.
        placement: what will be rounded.
        batches: samples of the model's inputs.
        symmetric: activations will be rounded around 0.
    """
    groups = _groups(model.graph, placement)
    if not groups:
        return []
    seen = _observe(model, groups, batches)
    found = []
    for name, readers in groups.items():
        weights = [array_of(reader.inputs[1]) for reader in readers]  # type: ignore[arg-type]
        power, scales, error = _search(seen[name], weights, symmetric=symmetric)
        if error < 1 - _WORTH:
            value = readers[0].inputs[0]
            assert value is not None
            folded = _fold(model.graph, value, readers, scales)
            found.append(Smoothed(name, power, error, folded))
    sweep(model.graph)
    return found


def _groups(graph: ir.Graph, placement: Placement) -> dict[str, list[ir.Node]]:
    """Return the products with rounded weights, by the activation that they read."""
    names = {site.node for site in placement.sites if site.op_type == "MatMul"}
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        if node.name in names and node.inputs[0] is not None and node.inputs[0].producer() is not None:
            found.setdefault(str(node.inputs[0].name), []).append(node)
    return found


@dataclass(frozen=True, eq=False)
class _Seen:
    """Some rows of an activation, and the ends of each channel in all of them, with 0 between."""

    rows: Array
    low: Array
    high: Array

    def step(self, scales: Array, *, symmetric: bool) -> float:
        """Return the step of the grid that holds all channels, divided by scales."""
        low, high = float((self.low / scales).min()), float((self.high / scales).max())
        return (2 * max(-low, high) if symmetric else high - low) / 255 or 1.0


def _observe(model: ir.Model, names: Iterable[str], batches: Iterable[Batch]) -> dict[str, _Seen]:
    rows: dict[str, list[Array]] = {name: [] for name in names}
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    for outputs in run(model, batches, list(rows)):
        for name, array in outputs.items():
            flat = array.reshape(-1, array.shape[-1])
            low[name] = np.minimum(low.get(name, np.float32(0)), flat.min(0))
            high[name] = np.maximum(high.get(name, np.float32(0)), flat.max(0))
            if sum(map(len, rows[name])) < _ROWS:
                rows[name].append(flat[:: max(1, len(flat) // _ROWS_OF_A_BATCH)].copy())
    return {name: _Seen(np.concatenate(parts), low[name], high[name]) for name, parts in rows.items()}


def _search(seen: _Seen, weights: list[Array], *, symmetric: bool) -> tuple[float, Array, float]:
    """Return how much is best moved, the scales for it, and the share of the error that is left."""
    largest = np.maximum(-seen.low, seen.high)
    heights = np.maximum.reduce([np.abs(weight).max(1) for weight in weights])
    products = [seen.rows @ weight for weight in weights]

    def error(scales: Array) -> float:
        return _error(seen.rows / scales, seen.step(scales, symmetric=symmetric), weights, products, scales)

    ones = np.ones_like(largest)
    before = error(ones)
    best = (0.0, ones, 1.0)
    for power in _POWERS:
        scales = _scales(largest, heights, power)
        left = error(scales) / before if before else 1.0
        if left < best[2]:
            best = (power, scales, left)
    return best


def _scales(largest: Array, heights: Array, power: float) -> Array:
    """Return powers of two around 1."""
    scales = np.log2(np.maximum(largest, _TINY)) * power - np.log2(np.maximum(heights, _TINY)) * (1 - power)
    return np.exp2(np.round(scales - np.median(scales))).astype(np.float32)


def _error(moved: Array, step: float, weights: list[Array], products: list[Array], scales: Array) -> float:
    """Return the sum of squares that rounding both sides costs."""
    rounded = np.round(moved / step) * step
    total = 0.0
    for weight, product in zip(weights, products, strict=True):
        scaled = weight * scales[:, None]
        steps = np.maximum(np.abs(scaled).max(0) / 127, np.finfo(np.float32).tiny)
        total += float(np.square(rounded @ (np.round(scaled / steps) * steps) - product).sum())
    return total


def _fold(graph: ir.Graph, value: ir.Value, readers: list[ir.Node], scales: Array) -> bool:
    """Divide an activation by scales, and multiply the rows of the weights that read it; say whether a norm divides."""
    for reader in readers:
        weight = reader.inputs[1]
        assert weight is not None
        name = f"{weight.name}.smooth.{value.name}"
        reader.replace_input_with(1, constant(graph, name, array_of(weight) * scales[:, None]))
    norm = value.producer()
    assert norm is not None
    if norm.op_type == "LayerNormalization" and set(users(value)) == set(readers) and not value.is_graph_output():
        moved = 1 / scales
        constants = [(index, norm.inputs[index]) for index in range(1, len(norm.inputs))]
        if all(part is not None and part.is_initializer() and part.const_value is not None for _, part in constants):
            for index, part in constants:
                assert part is not None
                norm.replace_input_with(index, constant(graph, f"{norm.name}.smooth.{index}", array_of(part) * moved))
            return True
    inverse = constant(graph, f"{value.name}.smooth", (1 / scales).astype(np.float32))
    divide = ir.node("Mul", [value, inverse], name=f"{value.name}.smooth_by")
    output = divide.outputs[0]
    output.name, output.type, output.shape = f"{value.name}.smoothed", value.type, value.shape
    order: Mapping[ir.Node, int] = {node: index for index, node in enumerate(graph)}
    graph.insert_before(min(readers, key=order.__getitem__), divide)
    for reader in readers:
        reader.replace_input_with(0, output)
    return False
