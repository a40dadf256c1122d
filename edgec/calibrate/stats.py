"""What calibration knows of the inputs of one weight matrix."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stats:
    """Statistics over the tokens of a calibration text.

    Args:
        importance: (cols,) float32, the mean square of each input: finite, and 0 for an input that is always 0.
    """

    importance: torch.Tensor
