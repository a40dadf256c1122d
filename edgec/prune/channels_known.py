"""What is known of a network without running it; what is not, holds the channels that need it."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgec.fuse.rule import is_constant, rank_of
from edgec.graph.store import shape_of


class HeldError(Exception):
    """Says why the channels that reach a node must stay."""


def size_of(value: ir.Value | None, axis: int) -> int | None:
    """Return the size of an axis of a value, if it is known; 1 for axes that broadcasting adds in front."""
    if axis < 0:
        return 1
    if value is not None and value.const_value is not None:
        return shape_of(value.const_value)[axis]
    dim = None if value is None or value.shape is None else value.shape[axis]
    return dim if isinstance(dim, int) else None


def need_rank(value: ir.Value | None) -> int:
    """Return the number of a value's axes.

    Raises:
        HeldError: it is not known.
    """
    rank = len(shape_of(value.const_value)) if value is not None and value.const_value is not None else rank_of(value)
    if rank is None:
        raise HeldError(f"the shape of {value and value.name} is not known")
    return rank


def numbers(node: ir.Node, index: int, default: Callable[[], Sequence[int]] | None = None) -> list[int]:
    """Return the integers of a constant input.

    Args:
        node: that reads them.
        index: of the input.
        default: makes what they are where the input is left out.

    Raises:
        HeldError: they are computed, or left out without a default.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None and default is not None:
        return list(default())
    if value is None or not is_constant(value) or value.const_value is None:
        raise HeldError(f"input {index} is not a constant")
    return [int(number) for number in np.asarray(value.const_value.numpy()).reshape(-1)]
