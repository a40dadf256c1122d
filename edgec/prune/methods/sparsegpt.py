"""Drop the weights that the inputs still to come can best make up for, and let those make up for them.

With H = E x x^T and U^T U = H^-1, U upper triangular, dropping a weight of input i adds (weight / U_ii)^2 to
E |(W - W') x|^2 once all later weights of its row are set anew. So inputs are taken in their order: of 128 at a time it
is decided which of all their weights go (of N:M, of m at a time in each row), and each that goes is made up for in the
columns behind. Rounding joins in: a weight that stays is rounded when its turn comes, and that error is made up for in
the same way.

Other than in the reference
- weights of inputs that never occur are first to go, but those that stay are left alone: on another text such an input
  may occur. The Hessian's diagonal has the mean importance there (`gptq.inverse_factor`), the reference has 1, which
  also counts in its damping;
- damping, 1 % of the mean importance, grows until the Hessian can be factored;
- with rounding, scales are those that `mse` finds for what a sweep without rounding leaves: found before anything goes,
  as in `gptq`, they cost 1 to 10 % more of what the matrix gives;
- inputs are never taken in the order of importance: what goes is a share of 128 inputs, which should not be the most
  important ones, and N:M is of neighbours.

Source: Frantar and Alistarh 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot
(arXiv:2301.00774), algorithm 1, and its section on joint sparsification and quantization.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.prune.methods import Pruned, keep_mask, largest, masked, wanda
from edgec.prune.pattern import Pattern
from edgec.quantize.algorithms import mse
from edgec.quantize.algorithms.gptq import inverse_factor
from edgec.quantize.pieces import check_finite, for_rows
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor
from edgec.quantize.threads import one_thread

NEEDS: Needs = "hessian"

# Inputs of which a share goes, and between two updates of all that come later.
_LAZY = 128

Round = Callable[[int, slice, torch.Tensor], torch.Tensor]
"""Takes a column, some rows, and their values (rows,); returns the numbers that will stand for them."""


@one_thread()
def prune(weight: torch.Tensor, stats: Stats | None, pattern: Pattern) -> Pruned:
    """Prune `weight` (rows = out, cols = in), float32, and change what stays to make up for it.

    Without a Hessian, or with one of zeros, there is nothing to make up for, and the result is that of `wanda`.

    Raises:
        ValueError: a weight is not finite, or becomes so, or the Hessian is none.
    """
    if stats is None or stats.hessian is None or not stats.hessian.diagonal().any():
        return wanda.prune(weight, stats, pattern)
    left, keep = _sweep(weight, stats.importance, inverse_factor(stats.hessian), pattern, lambda _, __, values: values)
    return Pruned(left.where(keep, 0), keep)


@one_thread()
def prune_and_quantize(
    weight: torch.Tensor, stats: Stats | None, pattern: Pattern, scheme: Scheme
) -> tuple[QuantizedTensor, torch.Tensor]:
    """Prune `weight` (rows = out, cols = in), float32, and quantize it to integers in the same pass.

    Without a Hessian, or with one of zeros, the result is that of `wanda`, rounded by `mse`.

    Returns:
        The matrix, exactly 0 where weights were pruned, and (rows, cols) bool, which of them stay.

    Raises:
        ValueError: a weight is not finite, or becomes so; the Hessian is none; there are no columns, or the scheme is
            one of floats.
    """
    if scheme.is_float:
        raise ValueError(f"{scheme.dtype} weights are rounded after pruning")
    if stats is None or stats.hessian is None or not stats.hessian.diagonal().any():
        pruned = wanda.prune(weight, stats, pattern)
        return masked(mse.quantize(pruned.weight, stats, scheme), pruned.keep), pruned.keep
    factor = inverse_factor(stats.hessian)
    left, keep = _sweep(weight, stats.importance, factor, pattern, lambda _, __, values: values)
    alone = Stats(torch.minimum(1 / factor.square().sum(0), stats.importance))
    grid = mse.quantize(left.where(keep, 0), alone, scheme)
    # Inputs along the first axis, so that what all rows have for one input is contiguous.
    scales = grid.scales.T.to(weight.device).contiguous()
    zeros = torch.zeros_like(scales) if grid.zero_points is None else grid.zero_points.T.to(scales)
    codes, width = torch.empty_like(weight.T, memory_format=torch.contiguous_format), scheme.group or weight.shape[1]

    def to_grid(column: int, rows: slice, values: torch.Tensor) -> torch.Tensor:
        scale, zero = scales[column // width, rows], zeros[column // width, rows]
        code = torch.round(values / scale).add_(zero).clamp_(scheme.low, scheme.high)
        codes[column, rows] = code
        return (code - zero) * scale

    _, keep = _sweep(weight, stats.importance, factor, pattern, to_grid)
    return masked(replace(grid, codes=codes.T.to(grid.codes).contiguous()), keep), keep


def _sweep(
    weight: torch.Tensor, importance: torch.Tensor, factor: torch.Tensor, pattern: Pattern, stands_for: Round
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights as each was when its turn came, and which of them stay, both (rows, cols)."""
    check_finite(weight, "weight")
    rows, cols = weight.shape
    left = weight.T.contiguous()
    keep = torch.ones_like(left, dtype=torch.bool)
    # What a weight's score is of; inputs that never occur have the lowest.
    worth = torch.where(importance > 0, 1 / factor.diagonal(), 0)[:, None]
    neighbours = 1 if pattern.block is None else pattern.block[1]
    step = max(1, _LAZY // neighbours) * neighbours

    def work(start: int, stop: int, piece: slice) -> None:
        values, stays = left[:, piece], keep[:, piece]
        errors = torch.empty_like(values[start:stop])
        for i in range(start, stop):
            if pattern.block is not None and i % neighbours == 0:
                group = slice(i, min(i + neighbours, stop))
                scores = (values[group].abs() * worth[group]).T
                stays[group] = largest(scores, pattern.kept(scores.shape[1])).T
            error = torch.sub(values[i], stands_for(i, piece, values[i]) * stays[i], out=errors[i - start])
            error /= factor[i, i]
            values[i + 1 : stop].addr_(factor[i, i + 1 : stop], error, alpha=-1)
        values[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)

    for start in range(0, cols, step):
        stop = min(start + step, cols)
        if pattern.block is None:
            keep[start:stop] = keep_mask(left[start:stop].abs() * worth[start:stop], pattern, "matrix")
        for_rows(rows, _LAZY, partial(work, start, stop))
    check_finite(left, "what makes up for pruned weights")
    return left.T.contiguous(), keep.T.contiguous()
