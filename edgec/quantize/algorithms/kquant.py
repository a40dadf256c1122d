"""Search scales as llama.cpp's k-quants do: many ranges, each with the least-squares fit of what its codes mean.

An error counts for importance * sqrt(variance of the row + weight^2): more than by importance alone where weights are
large. The search is for what edgec stores: float16 scales that are positive and zero points that are whole. It ends
within 1 % of the least sum of errors that int3 and int4 can have in it, and no group is worse than with rounding to
nearest.

llama.cpp stores scales of either sign, so that the lowest code stands for the largest weight, and minima instead of
zero points. The sum over what its search finds, before Q4_K rounds scales and minima to six bits, is from 1.00 to 1.21
for symmetric int4, 1.07 to 1.37 for int3 and 0.64 to 0.98 for int8; with zero points, from 1.17 to 1.97 for int4, 1.20
to 1.54 for int3 and 1.08 to 1.31 for int8: normal and heavy-tailed weights in 80 groups of 32, the most where a few
inputs are far more important than others.

Source: llama.cpp, ggml/src/ggml-quants.c: `make_qx_quants` and `quantize_row_q4_0_impl` for symmetric schemes,
`make_qkx3_quants` and `quantize_row_q4_K_impl` for others.
"""

from collections.abc import Iterator
from functools import partial

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.algorithms.rtn import covering
from edgec.quantize.pieces import Rows, by_pieces, cut, join
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor, as_float16

NEEDS: Needs = "importance"

_TINY = torch.finfo(torch.float32).tiny
# Ranges of codes over the range of the weights, 0.4 to 1.6, closest together around 1 where int8 has its best.
_RANGES = tuple(1 + 0.6 * step * abs(step) / 100 for step in range(-10, 11))
_SHIFTS = (-2, -1, 0, 1, 2)
_FITS = 3


def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite, to integers.

    Without statistics all inputs are equally important. Groups of zeros, ragged groups and threads are as for `rtn`;
    so is a group of inputs that never occur, or whose error float32 cannot hold.

    Raises:
        ValueError: a weight or an importance is not finite, or there are no columns.
    """
    importance = weight.new_ones(weight.shape[1]) if stats is None else stats.importance
    return by_pieces(weight, scheme, partial(_quantize_rows, importance=importance, scheme=scheme))


def error_weights(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return what the squared error of each weight (rows, cols) counts for.

    llama.cpp takes the variance of the row for symmetric codes; for others twice that of 256 weights, here of the row.
    """
    squares = weight.square()
    variance = squares.mean(1, keepdim=True) * (1 if scheme.symmetric else 2)
    return importance / importance.max().clamp(min=_TINY) * torch.sqrt(variance + squares)


def _quantize_rows(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> Rows:
    counts = error_weights(weight, importance, scheme)
    groups = zip(cut(weight, scheme), cut(counts, scheme), strict=True)
    return join([_quantize_groups(x, w, scheme) for x, w in groups], len(weight))


def _quantize_groups(x: torch.Tensor, w: torch.Tensor, scheme: Scheme) -> Rows:
    top, bottom = x.amax(0).clamp(min=0), x.amin(0).clamp(max=0)
    scale, zero = covering(top, bottom, scheme)
    lowest = _error(x, w, _codes(x, scale, zero, scheme), scale)
    for start, shift in _starts(scale, (top + bottom) / 2, scheme):
        fitted, error = _fit(x, w, start, shift, scheme)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        scale, zero = torch.where(better, fitted, scale), torch.where(better, shift, zero)
    for _ in range(_FITS):
        fitted, error = _fit(x, w, scale, zero, scheme)
        better = error < lowest
        scale, lowest = torch.where(better, fitted, scale), torch.where(better, error, lowest)
    return _codes(x, scale, zero, scheme) + zero, scale, zero


def _starts(scale: torch.Tensor, centre: torch.Tensor, scheme: Scheme) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield scales and zero points: ranges around the centre of the weights' one, or a few codes beside it."""
    for share in _RANGES:
        start = scale * share
        if scheme.symmetric:
            yield start, torch.zeros_like(start)
            continue
        middle = torch.round(scheme.high / 2 - centre / start)
        for shift in _SHIFTS:
            yield start, (middle + shift).clamp(0, scheme.high)


def _codes(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the nearest codes, less the zero point."""
    return torch.round(x / scale).clamp_(scheme.low - zero, scheme.high - zero)


def _fit(
    x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the float16 scale that brings the codes of `scale` nearest to the weights, and the error with it."""
    codes = _codes(x, scale, zero, scheme)
    counted = w * codes
    square = (counted * codes).sum(0)
    fitted = as_float16(torch.where(square > 0, (counted * x).sum(0) / square, scale))
    return fitted, _error(x, w, codes, fitted)


def _error(x: torch.Tensor, w: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x - codes * scale).square_().mul_(w).sum(0)
