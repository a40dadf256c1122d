"""Methods that choose weights to be 0, a file each; a file's name is the method's in profiles."""

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal, Protocol, cast

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.prune.pattern import Pattern
from edgec.quantize.pieces import for_rows
from edgec.quantize.tensor import QuantizedTensor


@dataclass(frozen=True)
class Pruned:
    """A matrix with zeros.

    Args:
        weight: (rows = out, cols = in) float32, exactly 0 where `keep` is false.
        keep: (rows, cols) bool, which weights stay; one that stays may be 0 itself.
    """

    weight: torch.Tensor
    keep: torch.Tensor


class Method(Protocol):
    """The functions of a method's file.

    Attributes:
        NEEDS: what it wants to know of a matrix besides its weights.
    """

    NEEDS: Needs

    def prune(self, weight: torch.Tensor, stats: Stats | None, pattern: Pattern) -> Pruned:
        """Prune `weight` (rows = out, cols = in), float32; a pure function.

        Raises:
            ValueError: a weight is not finite.
        """
        ...


def method_of(name: str) -> Method:
    """Return the method of that name."""
    return cast("Method", import_module(f"{__name__}.{name}"))


def keep_mask(scores: torch.Tensor, pattern: Pattern, per: Literal["row", "matrix"]) -> torch.Tensor:
    """Return which weights stay, those with the largest scores; among equal ones those that come first, row by row.

    The result does not depend on the number of threads.

    Args:
        scores: (rows = out, cols = in), any numbers but NaN.
        pattern: what stays.
        per: what a share is of; blocks of N:M are within rows, whatever it says.

    Returns:
        (rows, cols) bool.

    Raises:
        ValueError: a score is NaN.
    """
    if scores.isnan().any():
        raise ValueError("a score is NaN")
    rows, cols = scores.shape
    if pattern.block is None and per == "matrix":
        return largest(scores.reshape(1, -1), pattern.kept(rows * cols)).view(rows, cols)
    keep = torch.empty_like(scores, dtype=torch.bool)

    def work(piece: slice) -> None:
        keep[piece] = _of_each_row(scores[piece], pattern)

    if cols:
        for_rows(rows, cols, work)
    return keep


def _of_each_row(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    rows, cols = scores.shape
    if pattern.block is None:
        return largest(scores, pattern.kept(cols))
    stays, width = pattern.block
    whole = cols - cols % width
    blocks = largest(scores[:, :whole].reshape(-1, width), stays).view(rows, whole)
    return torch.cat((blocks, largest(scores[:, whole:], pattern.kept(cols - whole))), 1)


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return where the `count` largest scores of each row are, of equal ones the first, (rows, cols) bool."""
    cols = scores.shape[1]
    if count in (0, cols):
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    least = scores.kthvalue(cols - count + 1, dim=1, keepdim=True).values
    above, equal = scores > least, scores == least
    room = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))


def masked(tensor: QuantizedTensor, keep: torch.Tensor) -> QuantizedTensor:
    """Return the matrix with codes that mean exactly 0 where `keep` (rows, cols) is false."""
    cols = tensor.codes.shape[1]
    zero = torch.zeros((), dtype=tensor.codes.dtype)  # of symmetric integers, and of both small floats
    if tensor.zero_points is not None:
        zero = tensor.zero_points.repeat_interleave(tensor.scheme.group or cols, 1)[:, :cols]
    return replace(tensor, codes=torch.where(keep.to(tensor.codes.device), tensor.codes, zero))
