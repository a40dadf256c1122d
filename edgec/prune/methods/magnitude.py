"""Keep the largest weights of each matrix.

Source: Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks (arXiv:1506.02626).
"""

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.prune.methods import Pruned, keep_mask
from edgec.prune.pattern import Pattern
from edgec.quantize.pieces import check_finite

NEEDS: Needs = "nothing"


def prune(weight: torch.Tensor, stats: Stats | None, pattern: Pattern) -> Pruned:
    """Prune `weight` (rows = out, cols = in), float32: a share of the whole matrix, or of each block of a row.

    Raises:
        ValueError: a weight is not finite.
    """
    del stats  # it looks at weights alone
    check_finite(weight, "weight")
    keep = keep_mask(weight.abs(), pattern, "matrix")
    return Pruned(weight.where(keep, 0), keep)
