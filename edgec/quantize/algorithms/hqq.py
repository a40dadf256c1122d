"""Half-quadratic quantization: minimise the sum of |error of a weight|^0.7, in which large errors count little.

An extra variable, the error that is let stand, splits this into two easy problems that take turns: shrinking the error
(the proximal operator of |.|^p), and fitting what the codes mean to the weights less that error (least squares). Errors
are counted in steps of their group, as the constants of the reference would have it: there they are in units of the
weights, and an error below 0.17, so each of a language model's, is shrunk to nothing.

The reference fits a zero point that is a float, and leaves scales alone. Here zero points are integers, so the fitted
one is rounded, and scales are fitted to it and to that of rounding to nearest. Each group keeps what was best for it.
Only minima near the range that covers a group are looked for: some that clip more are lower by another seventh, but
have twice the squared error of rounding to nearest (the embedded language model, int4, groups of 64).

Source: Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models
(https://mobiusml.github.io/hqq_blog/); package hqq 0.2.8.post1, `optimize_weights_proximal`, for the constants.
"""

from functools import partial

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.algorithms.rtn import covering
from edgec.quantize.pieces import Rows, by_pieces, cut, join
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor, as_float16

NEEDS: Needs = "nothing"

POWER = 0.7
# The weight of the quadratic. The blog lets it grow by 1 % in each iteration; the package does not.
BETA, ITERATIONS = 10.0, 20


def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite, to integers.

    Groups of zeros, ragged groups and threads are as for `rtn`, and no group's sum is above that of `rtn`.
    """
    del stats  # looks at weights alone
    return by_pieces(weight, scheme, partial(_quantize_rows, scheme=scheme))


def _quantize_rows(weight: torch.Tensor, scheme: Scheme) -> Rows:
    return join([_quantize_groups(x, scheme) for x in cut(weight, scheme)], len(weight))


def _quantize_groups(x: torch.Tensor, scheme: Scheme) -> Rows:
    start, zero = covering(x.amax(0).clamp(min=0), x.amin(0).clamp(max=0), scheme)
    scale, lowest = fit_scale(x, start, zero, scheme)
    if not scheme.symmetric:
        shifted = fit_zero(x / start, zero, scheme.high).round().clamp(0, scheme.high)
        other, error = fit_scale(x, start, shifted, scheme)
        better = error < lowest
        scale, zero = torch.where(better, other, scale), torch.where(better, shifted, zero)
    codes = torch.round(x / scale).add_(zero).clamp_(scheme.low, scheme.high)
    return codes, scale, zero


def fit_scale(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale of each group that was best in a search from `scale`, a float16 number, and its error.

    Args:
        x: (width, groups).
        scale: (groups,), where to start.
        zero: (groups,) integers.
        scheme: the scheme.
    """
    best, lowest = scale, torch.full_like(scale, torch.inf)
    low, high = scheme.low - zero, scheme.high - zero
    for _ in range(ITERATIONS):
        steps = x / scale
        codes = torch.round(steps).clamp(low, high)
        stands, error = shrink(steps - codes, BETA)
        error *= scale.pow(POWER)
        better = error < lowest
        best, lowest = torch.where(better, scale, best), torch.where(better, error, lowest)
        squares = codes.square().sum(0)
        ratio = (steps - stands).mul_(codes).sum(0) / squares
        scale = torch.where(squares > 0, as_float16(scale * ratio), scale)
    return best, lowest


def fit_zero(steps: torch.Tensor, zero: torch.Tensor, high: int) -> torch.Tensor:
    """Return the zero point of each group, a float, that was best in a search from `zero`.

    Args:
        steps: (width, groups) weights over the scale.
        zero: (groups,), where to start.
        high: the highest code; the lowest is 0.
    """
    best, lowest = zero, torch.full_like(zero, torch.inf)
    for _ in range(ITERATIONS):
        following, error = next_zero(steps, zero, high, BETA)
        better = error < lowest
        best, lowest = torch.where(better, zero, best), torch.where(better, error, lowest)
        zero = following
    return best


def next_zero(
    steps: torch.Tensor, zero: torch.Tensor, high: int, beta: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the zero points after one iteration, and the error before it; arguments are as for `fit_zero`."""
    codes = torch.round(steps + zero).clamp(0, high)
    stands, error = shrink(steps - (codes - zero), beta)
    return (codes - (steps - stands)).mean(0), error


def shrink(error: torch.Tensor, beta: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the part of each error (width, groups) that is let stand, and the sum of |error|^p of each group."""
    size = error.abs()
    slope = size.pow(POWER - 1)  # infinite where there is no error
    stands = (size - slope / beta).clamp_(min=0).copysign_(error)
    return stands, torch.where(size > 0, size * slope, 0).sum(0)
