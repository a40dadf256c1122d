"""Quantize a matrix some rows at a time."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor
from edgec.quantize.threads import one_thread

T = TypeVar("T")

# Pieces that stay in a core's cache: three times as fast as whole matrices, and no temporaries of gigabytes.
_ELEMENTS_AT_ONCE = 1 << 17

_AT_ONCE = min(4, os.cpu_count() or 1)

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes (rows, cols), scales (rows, groups) and zero points (rows, groups), of any number type."""


def by_pieces(
    weight: torch.Tensor, scheme: Scheme, quantize_rows: Callable[[torch.Tensor], Rows], global_scale: float = 1.0
) -> QuantizedTensor:
    """Quantize `weight` (rows, cols) with a function that takes some of its rows and looks at each row alone.

    The result does not depend on the number of threads.

    Raises:
        ValueError: a weight is not finite, or there are no columns.
    """
    rows, cols = weight.shape
    if cols == 0:
        raise ValueError("there are no inputs (0 columns)")
    groups = scheme.groups(cols)
    signed = scheme.symmetric and not scheme.is_float
    codes = torch.empty((rows, cols), dtype=torch.int8 if signed else torch.uint8)
    scales = torch.empty((rows, groups))
    zero_points = None if scheme.symmetric else torch.empty((rows, groups), dtype=torch.uint8)

    def work(piece: slice) -> None:
        check_finite(weight[piece], "weight")
        codes[piece], scales[piece], zeros = quantize_rows(weight[piece])
        if zero_points is not None and zeros is not None:
            zero_points[piece] = zeros

    for_rows(rows, cols, work)
    return QuantizedTensor(codes, scales, zero_points, scheme, global_scale)


def for_rows(rows: int, cols: int, work: Callable[[slice], T]) -> list[T]:
    """Return what `work` makes of some rows at a time of a (rows, cols) matrix, some of them at once."""
    step = max(1, _ELEMENTS_AT_ONCE // cols)
    with one_thread(), ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, (slice(start, start + step) for start in range(0, rows, step))))


def check_finite(numbers: torch.Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: there is one.
    """
    if not numbers.isfinite().all():
        raise ValueError(f"{name} is not finite")


def cut(matrix: torch.Tensor, scheme: Scheme) -> list[torch.Tensor]:
    """Return the groups of (rows, cols) as (width, rows * groups), and apart from them the shorter groups at the end.

    The inputs of a group lie along the first axis, so that sums over them run over contiguous memory.
    """
    cols = matrix.shape[1]
    width = min(scheme.group or cols, cols)
    whole = cols - cols % width
    parts = [matrix[:, :whole].reshape(-1, width)] + ([matrix[:, whole:]] if whole < cols else [])
    return [part.t().contiguous() for part in parts]


def join(parts: Sequence[Rows], rows: int) -> Rows:
    """Return codes, scales and zero points of a matrix of `rows` from those of what `cut` gave.

    Args:
        parts: codes (width, rows * groups), scales (rows * groups,) and zero points (rows * groups,).
        rows: of the matrix.
    """
    codes = torch.cat([part.t().reshape(rows, -1) for part, _, _ in parts], 1)
    scales = torch.cat([scale.view(rows, -1) for _, scale, _ in parts], 1)
    zeros = [zero.view(rows, -1) for _, _, zero in parts if zero is not None]
    return codes, scales, torch.cat(zeros, 1) if zeros else None
