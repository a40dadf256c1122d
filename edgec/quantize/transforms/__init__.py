"""Changes of float weights that leave what a model computes alone, and make rounding hurt less.

`quarot` turns a whole graph before anything else. The others scale the inputs of matrices, block by block, with what
calibration knows of those inputs. A file's name is the transform's in profiles.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

import torch

from edgec.calibrate.stats import Needs, Stats
from edgec.quantize.fold import Fold
from edgec.quantize.scheme import Scheme

ROTATION = "quarot"
SCALINGS = ("awq", "smoothquant")


class Scaling(Protocol):
    """The functions of the file of a transform that scales inputs.

    Attributes:
        NEEDS: what it wants to know of the inputs.
    """

    NEEDS: Needs

    def scale(self, matrices: Sequence[tuple[torch.Tensor, Scheme]], stats: Stats, fold: Fold) -> torch.Tensor:
        """Return what to multiply the inputs of some matrices by, as `fold` shares it: positive and finite.

        Args:
            matrices: (rows, cols) weights that read the same inputs, with their schemes.
            stats: of the inputs.
            fold: where the inverse of the scale goes.
        """
        ...


def scaling_named(name: str) -> Scaling:
    """Return one of `SCALINGS`."""
    return cast("Scaling", import_module(f"{__name__}.{name}"))
