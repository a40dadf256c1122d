"""How sparse each matrix of a model gets, when their mean over all weights is given.

What is returned is the share of zeros of each matrix or layer, by its name: the sparsity of its `Pattern`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from edgec.prune.pattern import Pattern
from edgec.quantize.pieces import check_finite
from edgec.quantize.threads import one_thread
from edgec.spec.prune import OWL_SPREAD
from edgec.tune.solve import minimise

Shares = dict[str, float]

# Bits of a float32 number's size, its sign left out, count up with it: the upper 15, and the 16 below.
_SIZE, _LOWER = 0x7FFFFFFF, 0xFFFF
_PIECE = 1 << 20  # weights that are looked at once


def uniform(names: Iterable[str], target: float) -> Shares:
    """Return the same share for all."""
    return dict.fromkeys(names, target)


@one_thread()
def global_magnitude(weights: Mapping[str, Callable[[], torch.Tensor]], target: float) -> Shares:
    """Return how much of each matrix is below one threshold of |weight|, chosen so that `target` of all weights are.

    `magnitude.prune` with these shares drops exactly the smallest weights of the model, of equal ones those that come
    last. But a matrix that would lose all of its weights keeps one.

    Each matrix is read twice. Memory: half a megabyte for each, besides the one at hand.

    Args:
        weights: functions that read the matrices (rows, cols), float32.
        target: the share of zeros in all of them.

    Raises:
        ValueError: a weight is not finite, or `target` is no share of zeros.
    """
    uppers = sum((_histogram(read()) for read in weights.values()), torch.zeros(_LOWER // 2 + 1, dtype=torch.int64))
    total = int(uppers.sum())
    pruned = total - Pattern(target).kept(total)
    if pruned == 0:
        return uniform(weights, 0.0)
    upper = _bin_of(uppers, pruned)
    sizes, dropped, near = {}, {}, {}
    for name, read in weights.items():
        weight = read()
        sizes[name] = weight.numel()
        dropped[name] = _count_below(weight, upper)
        near[name] = _histogram(weight, upper)
    lowers = sum(near.values(), torch.zeros(_LOWER + 1, dtype=torch.int64))
    lower = _bin_of(lowers, pruned - sum(dropped.values()))
    dropped = {name: count + int(near[name][:lower].sum()) for name, count in dropped.items()}
    left = pruned - sum(dropped.values())
    for name in reversed(dropped):  # what is as large as the threshold
        equal = min(left, int(near[name][lower]))
        dropped[name] += equal
        left -= equal
    return {name: min(dropped[name], size - 1) / size if size else 0.0 for name, size in sizes.items()}


@one_thread()
def outlier_ratio(matrices: Sequence[tuple[torch.Tensor, torch.Tensor]], times: float = 5.0) -> float:
    """Return the share of a layer's weights whose |weight| * rms(input) is more than `times` the mean of all.

    Args:
        matrices: weights (rows = out, cols = in), and the importance (cols,) of their inputs, of a whole layer.
        times: M in the paper.

    Source: Yin et al. 2023, Outlier Weighed Layerwise Sparsity (arXiv:2310.05175), section 3.
    """
    count = sum(weight.numel() for weight, _ in matrices)
    if count == 0:
        return 0.0
    mean = sum(float(score.sum(dtype=torch.float64)) for score in _scores(matrices)) / count
    return sum(int((score > times * mean).sum()) for score in _scores(matrices)) / count


def owl(ratios: Mapping[str, float], sizes: Mapping[str, int], target: float, lam: float = OWL_SPREAD) -> Shares:
    """Return less for layers with more outliers: from target - lam to target + lam, with `target` as their mean.

    The farthest layer is at one of these ends. The authors' code stretches all over 2 * lam before it centres them,
    and leaves the interval with that where outliers are uneven.

    Args:
        ratios: `outlier_ratio` of each layer.
        sizes: weights of each layer.
        target: the share of zeros in all of them.
        lam: how far a layer may be from it.

    Raises:
        ValueError: the interval has shares that are none.

    Source: Yin et al. 2023, Outlier Weighed Layerwise Sparsity (arXiv:2310.05175), section 3.
    """
    if not 0 <= target - lam <= target + lam < 1:
        raise ValueError(f"shares of zeros from {target:g} - {lam:g} to {target:g} + {lam:g} are not all in [0, 1)")
    if len(set(ratios.values())) < 2:
        return uniform(ratios, target)
    mean = sum(ratios[name] * sizes[name] for name in ratios) / sum(sizes[name] for name in ratios)
    farthest = max(abs(ratio - mean) for ratio in ratios.values())
    return {name: target + lam * (mean - ratio) / farthest for name, ratio in ratios.items()}


def by_sensitivity(
    losses: Mapping[str, Sequence[float]], candidates: Sequence[float], sizes: Mapping[str, int], target: float
) -> Shares:
    """Return one of the candidates for each matrix, so that the sum of their losses is the least.

    Args:
        losses: what was measured with each matrix alone at each candidate, at least 0; infinite for what must not be.
        candidates: shares of zeros.
        sizes: weights of each matrix.
        target: the share of zeros in all of them, at least.

    Raises:
        MissingRuntimeError: scipy is not installed.
        ValueError: a loss is negative or NaN, or no choice is as sparse as that.

    Source: `edgec.tune.solve`.
    """
    table = np.array([losses[name] for name in losses], np.float64).reshape(len(losses), len(candidates))
    if not (table >= 0).all():
        raise ValueError("a loss is negative or NaN")
    size = np.array([sizes[name] for name in losses], np.float64)
    kept = size[:, None] * (1 - np.array(candidates, np.float64))
    # Sums of floats: the same choice for all, at the target, is within the limit.
    solution = minimise(table, kept, float(size.sum() * (1 - target) * (1 + 1e-9)))
    if solution is None:
        raise ValueError(f"no choice of these candidates gives a share of {target:g} zeros")
    return {name: candidates[chosen] for name, chosen in zip(losses, solution.choice, strict=True)}


def _scores(matrices: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterable[torch.Tensor]:
    return (weight.abs() * importance.sqrt() for weight, importance in matrices)


def _sizes(weight: torch.Tensor) -> Iterable[torch.Tensor]:
    """Yield the bits of the weights' sizes, some at a time.

    Raises:
        ValueError: a weight is not finite.
    """
    flat = weight.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        check_finite(piece, "weight")
        yield piece.view(torch.int32) & _SIZE


def _histogram(weight: torch.Tensor, upper: int | None = None) -> torch.Tensor:
    """Count the upper bits of sizes, or the lower bits of those whose upper bits are `upper`."""
    counts = torch.zeros(_LOWER // 2 + 1 if upper is None else _LOWER + 1, dtype=torch.int64)
    for bits in _sizes(weight):
        found = bits >> 16 if upper is None else bits[bits >> 16 == upper] & _LOWER
        counts += found.bincount(minlength=len(counts)).cpu()
    return counts


def _count_below(weight: torch.Tensor, upper: int) -> int:
    return sum(int((bits >> 16 < upper).sum()) for bits in _sizes(weight))


def _bin_of(counts: torch.Tensor, number: int) -> int:
    """Return the bin that the number-th of all is in, counted from 1."""
    return int(torch.searchsorted(counts.cumsum(0), number))
