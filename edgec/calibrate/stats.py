"""What calibration knows of the inputs of one weight matrix."""

from dataclasses import dataclass
from typing import Literal

import torch

Needs = Literal["nothing", "importance", "hessian", "block"]
"""What an algorithm wants to know: nothing but the weights, how much flows into each input, how inputs go together
(which includes the former), or the block around the matrix, to run it."""


@dataclass(frozen=True)
class Stats:
    """Statistics over the tokens of a calibration text.

    Args:
        importance: (cols,) float32, the mean square of each input: finite, and 0 for an input that is always 0.
        largest: (cols,) float32, the largest absolute value of each input.
        hessian: (cols, cols) float32, the mean over tokens of x x^T, symmetric, where it was asked for; its diagonal
            is `importance`.
        magnitude: (cols,) float32, the mean absolute value of each input.

    Raises:
        ValueError: a number is not finite.
    """

    importance: torch.Tensor
    largest: torch.Tensor | None = None
    hessian: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, numbers in vars(self).items():
            if numbers is not None and not numbers.isfinite().all():
                raise ValueError(f"{name} is not finite")
