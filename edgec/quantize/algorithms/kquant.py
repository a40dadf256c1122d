"""Search scales as llama.cpp's k-quants do: many ranges, each with the least-squares fit of what its codes mean.

An error counts for importance * sqrt(variance of the row + weight^2): more than by importance alone where weights are
large. Three things differ from llama.cpp. Scales are float16 numbers and zero points integers, where Q4_K stores
six-bit multiples of the largest scale and minimum of 256 weights. Scales are positive: where the largest weight of a
group is, llama.cpp turns the scale's sign to have the lowest code stand for it, which saves a tenth of the squared
error at int4; here the highest code does. And no group is worse than with rounding to nearest.

Q4_K_M is a mixture: some matrices have six bits instead of four. `mixture` says which, for the `[[layers]]` of a
profile.

Source: llama.cpp, ggml/src/ggml-quants.c: `make_qx_quants` and `quantize_row_q4_0_impl` for symmetric schemes,
`make_qkx3_quants` and `quantize_row_q4_K_impl` for others; src/llama-quant.cpp, `use_more_bits`.
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
# Of a scale, tried with each zero point; and how often a scale is fitted to its codes again.
_FACTORS, _FITS = (0.9, 0.95, 1.0, 1.05), 3


def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite, to integers.

    Without statistics all inputs are equally important. Groups of zeros, ragged groups and threads are as for `rtn`;
    so is a group of inputs that never occur, or whose error float32 cannot hold.

    Raises:
        ValueError: a weight or an importance is not finite.
    """
    importance = weight.new_ones(weight.shape[1]) if stats is None else stats.importance
    return by_pieces(weight, scheme, partial(_quantize_rows, importance=importance, scheme=scheme))


def mixture(layer: int, layers: int, matrix: str) -> bool:
    """Say whether Q4_K_M gives more bits to a matrix.

    Args:
        layer: from 0.
        layers: how many the model has.
        matrix: such as `attention.v`.
    """
    eighth = layers // 8
    more_bits = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return more_bits and matrix in ("attention.v", "mlp.down")


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
    scale, zero = covering(x.amax(0).clamp(min=0), x.amin(0).clamp(max=0), scheme)
    lowest = (x - _codes(x, scale, zero, scheme) * scale).square_().mul_(w).sum(0)
    for start, shift in _starts(x, w, scheme):
        found = start
        for _ in range(_FITS):
            found = as_float16(found)
            codes = _codes(x, found, shift, scheme)
            error = (x - codes * found).square_().mul_(w).sum(0)
            better = error < lowest
            lowest = torch.where(better, error, lowest)
            scale, zero = torch.where(better, found, scale), torch.where(better, shift, zero)
            found = _fit(x, w, codes, found)
    return _codes(x, scale, zero, scheme) + zero, scale, zero


def _starts(x: torch.Tensor, w: torch.Tensor, scheme: Scheme) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield scales and zero points near those that llama.cpp finds."""
    if scheme.symmetric:
        scale = symmetric_scale(x, w, scheme)
        yield scale, torch.zeros_like(scale)
        return
    scale, minimum = asymmetric_scale(x, w, scheme.high)
    # Of all that is near, few have a minimum that is a whole number of steps: others may be better than the nearest.
    zero = torch.round(-minimum / scale)
    for factor in _FACTORS:
        for shift in (-1, 0, 1):
            yield scale * factor, (zero + shift).clamp(0, scheme.high)


def symmetric_scale(x: torch.Tensor, w: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the scale of each group, a float (groups,), of weights (width, groups) whose errors count for `w`."""
    top, bottom = x.amax(0), -x.amin(0)
    largest, code = torch.maximum(top, bottom), torch.where(bottom >= top, -scheme.low, scheme.high)
    scale = largest / code
    lowest = torch.full_like(scale, torch.inf)
    for tenths in (0, *range(-9, 0), *range(1, 10)):
        codes = torch.round(x * ((code + 0.1 * tenths) / largest)).clamp_(scheme.low, scheme.high)
        fitted = _fit(x, w, codes, scale)
        error = (x - codes * fitted).square_().mul_(w).sum(0)
        better = error < lowest
        scale, lowest = torch.where(better, fitted, scale), torch.where(better, error, lowest)
    return scale


def asymmetric_scale(x: torch.Tensor, w: torch.Tensor, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and minimum <= 0 of each group, floats (groups,), so that x is near codes 0..high * scale + minimum.

    Args:
        x: (width, groups).
        w: (width, groups), what the squared error of each weight counts for.
        high: the highest code.
    """
    # A zero point in the range of codes needs a range that holds 0, so `top` is not below it as in llama.cpp.
    top, minimum = x.amax(0).clamp(min=0), x.amin(0).clamp(max=0)
    total = w.sum(0)
    mean = (w * x).sum(0) / total
    scale = (top - minimum) / high
    codes = torch.round((x - minimum) * (high / (top - minimum))).clamp_(0, high)
    lowest = (codes * scale + minimum - x).square_().mul_(w).sum(0)
    for step in range(37):
        inverse = (-0.9 + 0.05 * step + high) / (top - minimum)
        codes = torch.round((x - minimum) * inverse).clamp_(0, high)
        # Around their means: llama.cpp's sums of squares would cancel with the 256 codes of int8.
        mean_code = (w * codes).sum(0) / total
        slope = _fit(x - mean, w, codes - mean_code, scale)
        offset = mean - slope * mean_code
        slope, offset = torch.where(offset > 0, _fit(x, w, codes, slope), slope), offset.clamp(max=0)
        error = (codes * slope + offset - x).square_().mul_(w).sum(0)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        scale, minimum = torch.where(better, slope, scale), torch.where(better, offset, minimum)
    return scale, minimum


def _codes(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the nearest codes, less the zero point."""
    return torch.round(x / scale).clamp_(scheme.low - zero, scheme.high - zero)


def _fit(x: torch.Tensor, w: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the scale that brings codes nearest to the weights, `scale` where all codes are 0."""
    counted = w * codes
    square = (counted * codes).sum(0)
    return torch.where(square > 0, (counted * x).sum(0) / square, scale)
