"""Keep the weights of each output that pass on most: |weight| times the root mean square of its input.

Weights of inputs that never occur go first.

Source: Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models (arXiv:2306.11695).
"""

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.prune.methods import Pruned, keep_mask, magnitude
from edgec.prune.pattern import Pattern
from edgec.quantize.pieces import check_finite

NEEDS: Needs = "importance"


def prune(weight: torch.Tensor, stats: Stats | None, pattern: Pattern) -> Pruned:
    """Prune `weight` (rows = out, cols = in), float32: a share of each row, or of each block of a row.

    Without statistics, or where no input ever occurs, the result is that of `magnitude`.

    Raises:
        ValueError: a weight is not finite.
    """
    if stats is None or not stats.importance.any():
        return magnitude.prune(weight, stats, pattern)
    check_finite(weight, "weight")
    # Only ratios of importances matter: with the largest at 1 no score overflows.
    root = torch.sqrt(stats.importance / stats.importance.max())
    keep = keep_mask(weight.abs() * root, pattern, "row")
    return Pruned(weight.where(keep, 0), keep)
