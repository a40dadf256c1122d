"""Scale up the inputs that much flows through, so that rounding hurts them less.

Multiplying the weights of an input by s and dividing the input by s changes nothing but how finely those weights are
rounded. The scale of an input is its mean magnitude to a power a, over the size of its weights to a power b; the powers
between 0 and 1 are those that make the error of rounding smallest, on a grid that gets finer around the best.

The paper has b = 0, its repository b = 1 - a as well, with another size of weights; here the square is searched, as
channels may differ in their weights as much as in what flows through them.

Source: Lin et al. 2024, AWQ (arXiv:2306.00978), equations 4 and 5; its repository for the norm of s.
"""

from collections.abc import Sequence
from itertools import product

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.algorithms import rtn
from edgec.quantize.fold import Fold
from edgec.quantize.pieces import for_rows
from edgec.quantize.scheme import Scheme

NEEDS: Needs = "hessian"

_STEPS = 4
_SMALLEST = 1e-4


def scale(matrices: Sequence[tuple[torch.Tensor, Scheme]], stats: Stats, fold: Fold) -> torch.Tensor:
    """Return what to multiply the inputs of some matrices by, as `fold` shares it: positive, finite.

    Args:
        matrices: (rows, cols) weights that share their inputs, with their schemes.
        stats: of the inputs, with `magnitude` and `hessian`.
        fold: where the inverse goes.

    Source: equation 4, the mean square of the matrices' outputs' error: trace((W - Q) H (W - Q)^T).
    """
    assert stats.hessian is not None
    assert stats.magnitude is not None
    hessian = stats.hessian
    flow = fold.shared(stats.magnitude).clamp(min=_SMALLEST)
    weights = torch.cat([weight for weight, _ in matrices]).square().mean(0).sqrt()
    size = fold.shared(weights)
    size = size.clamp(min=float(size.max()) * _SMALLEST or 1.0)
    tried: dict[tuple[float, float], float] = {}

    def scale_of(powers: tuple[float, float]) -> torch.Tensor:
        s = flow ** powers[0] / size ** powers[1]
        return s / torch.sqrt(s.max() * s.min())

    def attempt(powers: tuple[float, float]) -> None:
        if powers not in tried and 0 <= min(powers) <= max(powers) <= 1:
            s = fold.spread(scale_of(powers))
            tried[powers] = sum(_error(weight, s, hessian, scheme) for weight, scheme in matrices)

    for a, b in product(range(_STEPS + 1), repeat=2):
        attempt((a / _STEPS, b / _STEPS))
    near = min(tried, key=tried.__getitem__)
    for a, b in product((-1, 0, 1), repeat=2):
        attempt((near[0] + a / (2 * _STEPS), near[1] + b / (2 * _STEPS)))
    return scale_of(min(tried, key=tried.__getitem__))


def _error(weight: torch.Tensor, s: torch.Tensor, hessian: torch.Tensor, scheme: Scheme) -> float:
    def work(piece: slice) -> float:
        rows = weight[piece]
        change = rtn.quantize(rows * s, None, scheme).dequantize() / s - rows
        return float(((change @ hessian) * change).sum())

    return sum(for_rows(len(weight), weight.shape[1], work))
