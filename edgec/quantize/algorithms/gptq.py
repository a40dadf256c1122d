"""Round one input after the other, and let the inputs that are still to come make up for each error.

The error of a matrix is E |(W - Q) x|^2 = trace((W - Q) H (W - Q)^T), with H = E x x^T. Inputs are rounded in the order
of their importance ("act-order"). Scales are set before that ("static groups"), so the stored layout does not see the
order: they are those that `mse` finds when an input counts for what the other inputs cannot make up, 1 / (H^-1)_ii.

Where the reference drops the weights of inputs that never occur, they are rounded to nearest here: on another text such
an input may occur.

Source: Frantar et al. 2023, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers
(arXiv:2210.17323), algorithm 1; its repository for act-order, static groups and dampening.
"""

from functools import partial

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.algorithms import mse
from edgec.quantize.pieces import Rows, by_pieces
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor
from edgec.quantize.threads import one_thread

NEEDS: Needs = "hessian"

# Of the mean importance, added to that of each input; ten times more after each try that fails.
_DAMPING, _TRIES = 0.01, 8
# Inputs between two updates of all that come later.
_LAZY = 128


@one_thread()
def quantize(weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
    """Quantize `weight` (rows = out, cols = in), float32 and finite, to integers.

    Without a Hessian, or with one of zeros, there is nothing to make up for, and the result is that of `mse`.
    """
    if stats is None or stats.hessian is None or not stats.hessian.diagonal().any():
        return mse.quantize(weight, stats, scheme)
    order = torch.argsort(stats.importance, descending=True, stable=True)
    factor = inverse_factor(stats.hessian[order][:, order])
    alone = torch.empty_like(stats.importance)
    alone[order] = 1 / factor.square().sum(0)
    # Damping would make inputs that hardly ever occur count, and the scales of their groups theirs.
    alone = torch.minimum(alone, stats.importance)
    rounded = partial(_quantize_rows, importance=alone, factor=factor, order=order, scheme=scheme)
    return by_pieces(weight, scheme, rounded)


@one_thread()
def compensated(weight: torch.Tensor, stats: Stats | None, tensor: QuantizedTensor) -> torch.Tensor:
    """Return what `quantize` rounded, (rows, cols): each weight with what it makes up for, in its own units.

    With U^T U = H^-1 the errors of all inputs are W - Q = E U, and what was rounded is Q + E diag(U).
    """
    if stats is None or stats.hessian is None or not stats.hessian.diagonal().any():
        return weight
    order = torch.argsort(stats.importance, descending=True, stable=True)
    factor = inverse_factor(stats.hessian[order][:, order])
    rounded = tensor.dequantize().to(weight.device)[:, order]
    errors: torch.Tensor = torch.linalg.solve_triangular(factor, weight[:, order] - rounded, upper=True, left=False)
    return (rounded + errors * factor.diagonal())[:, torch.argsort(order)]


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper triangular (cols, cols) U with U^T U = H^-1, of a damped H.

    An input that never occurs gets the mean importance, which leaves it alone.

    Raises:
        ValueError: no damping makes H positive definite: it is not a Hessian.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    upper: torch.Tensor
    diagonal[diagonal == 0] = mean
    for attempt in range(_TRIES):
        diagonal += mean * _DAMPING * (10**attempt if attempt == 0 else 9 * 10 ** (attempt - 1))
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and upper.isfinite().all():
            return upper
    raise ValueError("the Hessian is not positive definite, however much it is damped")


def _quantize_rows(
    weight: torch.Tensor, importance: torch.Tensor, factor: torch.Tensor, order: torch.Tensor, scheme: Scheme
) -> Rows:
    _, scales, zeros = mse.search(weight, importance, scheme)
    assert zeros is not None
    group = order // (scheme.group or weight.shape[1])
    # Inputs along the first axis, so that those of one input are contiguous.
    left = weight.T[order].contiguous()
    scale, zero = scales.T[group].contiguous(), zeros.T[group].contiguous()
    codes = torch.empty_like(left)
    for start in range(0, len(left), _LAZY):
        stop = min(start + _LAZY, len(left))
        errors = torch.empty_like(left[start:stop])
        for i in range(start, stop):
            codes[i] = torch.round(left[i] / scale[i]).add_(zero[i]).clamp_(scheme.low, scheme.high)
            error = torch.sub(left[i], (codes[i] - zero[i]) * scale[i], out=errors[i - start])
            error /= factor[i, i]
            left[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    back = torch.argsort(order)
    return codes[back].T, scales, zeros
