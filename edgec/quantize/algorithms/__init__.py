"""Algorithms that round weights, a file each; a file's name is the algorithm's in profiles."""

from importlib import import_module
from typing import Protocol, cast

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.scheme import Scheme
from edgec.quantize.tensor import QuantizedTensor


class Algorithm(Protocol):
    """The functions of an algorithm's file.

    Attributes:
        NEEDS: what it wants to know of a matrix besides its weights.
    """

    NEEDS: Needs

    def quantize(self, weight: torch.Tensor, stats: Stats | None, scheme: Scheme) -> QuantizedTensor:
        """Quantize `weight` (rows = out, cols = in), float32; a pure function.

        Raises:
            ValueError: weights or statistics are not finite.
        """
        ...


def algorithm_of(scheme: Scheme) -> Algorithm:
    """Return the algorithm that a scheme names."""
    return cast("Algorithm", import_module(f"{__name__}.{scheme.algorithm}"))
