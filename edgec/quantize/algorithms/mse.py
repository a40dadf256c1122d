"""Search the scale of each group that brings the matrix's outputs nearest to those of the float weights.

The error of a group is the sum over its inputs of E[input^2] (weight - dequantized weight)^2: what rounding adds to the
square of the output, on average over the calibration text, where inputs are not correlated. Without statistics the
square of the weight takes the place of E[input^2], so that clipping large weights is dear.

A few ranges are tried, from clipping the largest weights to leaving codes unused. Each gives codes; the scale is then
fitted to the codes by least squares and rounded to float16. Rounding to nearest is among them, and wins ties.

Source: Banner et al. 2019, Post-training 4-bit quantization of convolutional networks (arXiv:1810.05723), for clipping;
Lin et al. 2024, AWQ (arXiv:2306.00978), for weighing inputs by what flows through them.
"""

from collections.abc import Iterator
from functools import partial

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.algorithms.rtn import covering
from edgec.quantize.pieces import Rows, by_pieces
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor, as_float16

NEEDS: Needs = "importance"

# The range of a group's weights, over the range that its codes cover: above 1, the largest weights are clipped.
_RANGES = (0.9, 1.0, 1.1, 1.2, 1.3)
_TINY = torch.finfo(torch.float32).tiny


def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite, to integers.

    Groups of zeros, ragged groups and threads are as for `rtn`; so is a group whose error float32 cannot hold.

    Raises:
        ValueError: a weight is not finite, or there are no columns.
    """
    importance = None if stats is None else stats.importance
    return by_pieces(weight, scheme, partial(search, importance=importance, scheme=scheme))


def search(weight: torch.Tensor, importance: torch.Tensor | None, scheme: Scheme) -> Rows:
    """Return codes, scales and zero points of some rows of a matrix, each row by itself.

    Args:
        weight: (rows, cols).
        importance: (cols,), of which only the ratios matter; None takes the squares of the weights.
        scheme: the scheme.
    """
    rows, cols = weight.shape
    # Errors are squares of what the root multiplies.
    root = None if importance is None else torch.sqrt(importance / importance.max().clamp(min=_TINY))
    # The inputs of a group lie along the first axis, so that sums over them run over contiguous memory.
    x = _by_input(weight, scheme)
    root = x.abs() if root is None else _by_input(root.expand(rows, cols), scheme)
    weighted = x * root
    top, bottom = x.amax(0).clamp(min=0), x.amin(0).clamp(max=0)
    scale, zero = covering(top, bottom, scheme)
    lowest = _residual(weighted, _codes(x, scale, zero, scheme).mul_(root), scale).square_().sum(0)
    for start, shift in _candidates(top, bottom, scheme):
        fitted, error = _fit(weighted, _codes(x, start, shift, scheme).mul_(root), start)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        scale, zero = torch.where(better, fitted, scale), torch.where(better, shift, zero)
    codes = torch.round(x / scale).add_(zero).clamp_(scheme.low, scheme.high)
    return codes.t().reshape(rows, -1)[:, :cols], scale.view(rows, -1), zero.view(rows, -1)


def _by_input(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return (rows, cols) as (width, rows * groups), padded with zeros, which have no error."""
    rows, cols = weight.shape
    groups, width = scheme.groups(cols), scheme.group or cols
    padded = torch.nn.functional.pad(weight, (0, groups * width - cols))
    return padded.reshape(rows * groups, width).t().contiguous()


def _candidates(top: torch.Tensor, bottom: torch.Tensor, scheme: Scheme) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield scales and zero points; codes cover the middle of the range."""
    steps = scheme.high - scheme.low
    wide = 2 * torch.maximum(top, -bottom) if scheme.symmetric else top - bottom
    for share in _RANGES:
        scale = as_float16(wide / (steps * share))
        centred = torch.round(steps / 2 - (top + bottom) / (2 * scale)).clamp(0, steps)
        yield scale, torch.zeros_like(scale) if scheme.symmetric else centred


def _codes(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the nearest codes, less the zero point."""
    codes = (x * (1 / scale)).round_()
    return torch.clamp(codes, scheme.low - zero, scheme.high - zero, out=codes)


def _fit(weighted: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale that brings codes nearest to `weighted`, both times the root, and the error with it."""
    residual = _residual(weighted, codes, scale)
    slope, curvature = (residual * codes).sum(0), codes.square_().sum(0)
    fitted = as_float16(torch.where(curvature > 0, scale + slope / curvature, scale))
    # From the residual, which is small: the squares of the weights themselves would cancel.
    change = fitted - scale
    return fitted, residual.square_().sum(0) - change * (2 * slope - change * curvature)


def _residual(weighted: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(weighted, codes, scale, value=-1)
