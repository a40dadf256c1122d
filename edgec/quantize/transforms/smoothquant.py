"""SmoothQuant: divide inputs whose activations are large, and multiply their weights by as much.

x W^T = (x / s) (W * s)^T: a static scale for all inputs of a token then costs the small ones less. What divides x is
folded into whatever makes it (a norm's weight, the rows of v or up).

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML
2023, https://arxiv.org/abs/2211.10438, equation 4.
"""

from collections.abc import Sequence

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.fold import Fold
from edgec.quantize.scheme import Scheme

NEEDS: Needs = "importance"

# Neither a scale nor what it is folded into leaves the numbers that a float16 holds without loss.
_LIMIT = 2.0**12


def scale(matrices: Sequence[tuple[torch.Tensor, Scheme]], stats: Stats, fold: Fold) -> torch.Tensor:
    """Return what to multiply the inputs of some matrices by, as `fold` shares it; see `smooth`, whose alpha is 0.5.

    Args:
        matrices: (rows, cols) weights that share their inputs, with their schemes.
        stats: of the inputs, with `largest`.
        fold: where the inverse goes; inputs that share a scale count as their largest.
    """
    assert stats.largest is not None
    return smooth(fold.shared(stats.largest), [fold.shared(weight.abs().amax(0))[None] for weight, _ in matrices])


def smooth(largest: torch.Tensor, weights: Sequence[torch.Tensor], alpha: float = 0.5) -> torch.Tensor:
    """Return the scale (cols,) float32 of each input: max|x|^alpha / max|w|^(1 - alpha).

    An input that is always 0, or that no weight reads, keeps its size: 1. Scales are positive, from 2^-12 to 2^12.

    Args:
        largest: (cols,) max|x| of each input over the calibration text.
        weights: the (rows, cols) matrices that read the input.
        alpha: how much of the difficulty moves to the weights: 0 evens out the weights alone, 1 the activations.

    Raises:
        ValueError: alpha is not from 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is from 0 to 1, not {alpha}")
    of_weights = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).double()
    wanted = largest.double().pow(alpha) / of_weights.pow(1 - alpha)
    dead = (largest == 0) | (of_weights == 0)
    return torch.where(dead, 1.0, wanted).clamp(1 / _LIMIT, _LIMIT).float()
