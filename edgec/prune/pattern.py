"""Which weights of a matrix may be 0: a share of them, or some of every few."""

import math
import re
from typing import Self

import msgspec


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of zeros, wherever they are, or blocks of inputs with so many zeros each.

    As text: "50%" for a share of zeros, "2:4" for two of four that stay.

    Args:
        sparsity: the share of zeros, at least 0 and less than 1; that of N:M is 1 - N / M.
        block: (n, m): of every m inputs of an output, from the first one on, at most n are not 0. None for anywhere.

    Raises:
        ValueError: there is no such pattern.
    """

    sparsity: float
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.block is not None:
            stays, width = self.block
            if not 0 < stays < width:
                raise ValueError(f"{stays}:{width} is no pattern: some of {width} inputs stay, not none and not all")
            if self.sparsity != 1 - stays / width:
                raise ValueError(f"{stays}:{width} has a share of {1 - stays / width:g} zeros, not {self.sparsity:g}")
        elif not 0 <= self.sparsity < 1:
            raise ValueError(f"{self.sparsity:g} is no share of zeros: at least 0, and less than 1")

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.6g}%" if self.block is None else "{}:{}".format(*self.block)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the pattern that a text means.

        Raises:
            ValueError: there is no such pattern.
        """
        if share := re.fullmatch(r"(\d{1,2}(?:\.\d+)?)%", text, re.ASCII):
            return cls(float(share[1]) / 100)
        if block := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text, re.ASCII):
            stays, width = int(block[1]), int(block[2])
            return cls(1 - stays / max(width, 1), (stays, width))
        raise ValueError(f'"{text}" is no pattern: a share of zeros as "50%", or how many of how many stay as "2:4"')

    def kept(self, count: int) -> int:
        """Return how many of `count` weights stay: inputs of one output in a row, or for a share any weights.

        A share is rounded to whole weights, and a half of one stays. k inputs behind the last whole block keep
        k * n / m, rounded up.
        """
        if self.block is None:
            return count - math.ceil(count * self.sparsity - 0.5)
        stays, width = self.block
        return count // width * stays + math.ceil(count % width * stays / width)
