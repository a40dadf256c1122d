"""Made-up inputs that a graph can be run on: the right types, small sizes, integers that its tables have rows for."""

from collections.abc import Iterator
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]

# What to put for dimensions that a graph leaves open: the batch of each input, and all others.
_SIZES = ((2, 8), (1, 16), (3, 5), (2, 64), (1, 256), (1, 512), (2, 1), (1, 1), (8, 8), (16, 16))
_PER_SIZE = 2
_MAX_NUMBERS = 1 << 26

# Operators that hand numbers on: followed to find what an input's numbers are looked up in.
_CARRIERS = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze", "Clip", "Where", "Tile", "Pad"}
)


def feeds(inputs: list[tuple[str, str, list[int | str | None]]], model: ir.Model) -> Iterator[Feed]:
    """Yield inputs to try, seeded.

    Args:
        inputs: name, type as in "tensor(float)", and shape of each.
        model: the graph that they go into.

    Raises:
        ValueError: no array can be made of a type, or only one that is too large.
    """
    by_name = {value.name: value for value in model.graph.inputs}
    rows = {name: _table_rows(value) for name, value in by_name.items()}
    choices = {name: _compared_with(value) for name, value in by_name.items()}
    for seed, (first, other) in enumerate(sizes for sizes in _SIZES for _ in range(_PER_SIZE)):
        rng = np.random.default_rng(seed)
        sizes: dict[str, int] = {}
        feed: Feed = {}
        for name, kind, shape in inputs:
            batch = _batch_axis(shape)
            wanted = []
            for axis, size in enumerate(shape):
                key = size if isinstance(size, str) and size else f"{name}:{axis}"
                chosen = size if isinstance(size, int) else sizes.setdefault(key, first if axis == batch else other)
                wanted.append(chosen)
            if prod(wanted) > _MAX_NUMBERS:
                raise ValueError(f"input '{name}' of shape {wanted} is too large to be made up")
            if options := choices.get(name):
                feed[name] = np.full(wanted, options[seed % len(options)], _dtype(kind))
            else:
                feed[name] = _random(rng, _dtype(kind), tuple(wanted), rows.get(name))
        yield feed


def _batch_axis(shape: list[int | str | None]) -> int | None:
    """Where the batch probably is: first, or behind a fixed number of layers or directions."""
    if not shape or shape[0] == 1:
        return None
    return next((axis for axis, size in enumerate(shape) if not isinstance(size, int)), None)


def _dtype(kind: str) -> np.dtype[Any]:
    name = kind.removeprefix("tensor(").removesuffix(")")
    special = {"float": "float32", "double": "float64", "string": "object", "bfloat16": ml_dtypes.bfloat16}
    try:
        dtype: np.dtype[Any] = np.dtype(special.get(name, name))
    except TypeError as error:
        raise ValueError(f"inputs of type {kind} cannot be made up") from error
    return dtype


def _random(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int | None) -> NDArray[Any]:
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if dtype.kind in "iu":
        return rng.integers(0, rows or (256 if dtype == np.uint8 else 2), shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.standard_normal(shape).astype(dtype)


def _carried(value: ir.Value) -> list[ir.Value]:
    """`value` and everything that holds its numbers."""
    found = [value]
    for current in found:
        for use in current.uses():
            if use.node.op_type in _CARRIERS and not (use.node.op_type == "Gather" and use.idx == 1):
                found += [output for output in use.node.outputs if output not in found]
    return found


def _table_rows(value: ir.Value) -> int | None:
    """How many rows the smallest table has that an input's numbers are looked up in."""
    rows = []
    for carried in _carried(value):
        for use in carried.uses():
            table = use.node.inputs[0]
            if use.node.op_type in {"Gather", "GatherElements"} and use.idx == 1 and table and table.shape:
                size = table.shape[use.node.attributes.get_int("axis", 0)]
                rows += [size] if isinstance(size, int) and size else []
    return min(rows, default=None)


def _compared_with(value: ir.Value) -> list[int]:
    """The integers that an input is compared with, and one that it is not: both ways of a condition are to be run."""
    if value.dtype is None or not value.dtype.is_integer():
        return []
    options: set[int] = set()
    for carried in _carried(value):
        for use in carried.uses():
            if use.node.op_type == "Equal":
                other = use.node.inputs[1 - use.idx]
                tensor = other.const_value if other else None
                if tensor is not None and tensor.size == 1:
                    options.add(int(tensor.numpy().reshape(-1)[0]))
    return [*sorted(options), max(options) + 1] if options else []
