"""Half-quadratic quantization: minimise the sum of |error of a weight|^0.7, in which large errors count little.

An extra variable, the error that is let stand, splits this into two easy problems that take turns: shrinking the error
(the proximal operator of |.|^p), and fitting what the codes mean to the weights less that error (least squares). Errors
are counted in steps of their group, as the constants of the reference would have it: there they are in units of the
weights, and an error below 0.17, so each of a language model's, is shrunk to nothing.

The reference fits a zero point that is a float, and leaves scales alone. Here zero points are integers, so the fitted
one is rounded, and the scale is fitted to it, from three ranges: the one that covers the group, and a code more or
less. Each group keeps what was best for it. Only minima near the range that covers a group are looked for: some that
clip more are lower by another seventh, but have twice the squared error of rounding to nearest (the embedded language
model, int4, groups of 64).

Fitting scales makes up for whole zero points: the sum over that of the package is 1.00 to 1.01 for int4, 0.91 to 0.92
for int3 and 1.01 for int8 (heavy-tailed weights, groups of 64, or 256 for int8). Symmetric schemes, which the package
does not have, leave codes unused where a group is not centred around 0: 1.12 to 1.13, 1.02 and 1.15.

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
# How often the scale is fitted, which the package leaves alone: with more, it goes on to clip for a percent less.
FITS = 12


def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite, to integers.

    Groups of zeros, ragged groups and threads are as for `rtn`, and no group's sum is above that of `rtn`.

    Raises:
        ValueError: a weight is not finite, or there are no columns.
    """
    del stats  # looks at weights alone
    return by_pieces(weight, scheme, partial(_quantize_rows, scheme=scheme))


def _quantize_rows(weight: torch.Tensor, scheme: Scheme) -> Rows:
    return join([_quantize_groups(x, scheme) for x in cut(weight, scheme)], len(weight))


def _quantize_groups(x: torch.Tensor, scheme: Scheme) -> Rows:
    covers, middle = covering(x.amax(0).clamp(min=0), x.amin(0).clamp(max=0), scheme)
    scale, zero, lowest = covers, middle, _rounded(x, covers, middle, scheme)[-1]
    steps = scheme.high - scheme.low
    for more in (-1, 0, 1):
        start, shift = as_float16(covers * (steps / (steps + more))), middle
        if not scheme.symmetric:
            shift = fit_zero(x / start, middle, scheme.high).round().clamp(0, scheme.high)
        other, error = fit_scale(x, start, shift, scheme)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        scale, zero = torch.where(better, other, scale), torch.where(better, shift, zero)
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
    for _ in range(FITS):
        codes, fits, error = _rounded(x, scale, zero, scheme)
        better = error < lowest
        best, lowest = torch.where(better, scale, best), torch.where(better, error, lowest)
        squares = codes.square().sum(0)
        ratio = fits.mul_(codes).sum(0) / squares
        scale = torch.where(squares > 0, as_float16(scale * ratio), scale)
    return best, lowest


def _rounded(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes less the zero point, what they are to fit (the weights in steps less what stands), and the error."""
    steps = x / scale
    codes = torch.round(steps).clamp(scheme.low - zero, scheme.high - zero)
    stands, error = shrink(steps - codes, BETA)
    return codes, steps - stands, error * scale.pow(POWER)


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
