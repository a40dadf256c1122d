"""How the numbers of one weight matrix are stored."""

import math
from typing import Literal

import msgspec

Dtype = Literal["int3", "int4", "int8", "fp8", "nvfp4"]
_BITS: dict[Dtype, int] = {"int3": 3, "int4": 4, "nvfp4": 4}

NVFP4_GROUP = 16


class Scheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Codes with a scale for each group of `group` inputs of each output, or for each output (`group` None).

    Codes are integers or small floats. Symmetric integers are signed (int4: -8..7, int8: -128..127) around 0;
    asymmetric ones are unsigned with a zero point. fp8 is E4M3 with one scale per output. nvfp4 is E2M1 in groups of
    16 with E4M3 scales, and a float32 scale for the whole matrix. int3 is for studies: graphs store it in four bits.

    Raises:
        ValueError: fp8 or nvfp4 with other groups, asymmetric, or not rounded to nearest.

    Source: `edgec.quantize.floats` and `edgec.quantize.nvfp4` for the floats.
    """

    dtype: Dtype
    group: int | None
    symmetric: bool = True
    algorithm: str = "rtn"

    def __post_init__(self) -> None:
        if self.dtype == "fp8" and self.group is not None:
            raise ValueError('fp8 weights have one scale per output: group_size = "channel"')
        if self.dtype == "nvfp4" and self.group != NVFP4_GROUP:
            raise ValueError(f"nvfp4 weights have groups of {NVFP4_GROUP}: group_size = {NVFP4_GROUP}")
        if self.is_float and not self.symmetric:
            raise ValueError(f"{self.dtype} weights have no zero points: symmetric = true")
        if self.is_float and self.algorithm != "rtn":
            raise ValueError(f'{self.dtype} weights are rounded to nearest: algorithm = "rtn"')

    @property
    def is_float(self) -> bool:
        return self.dtype in ("fp8", "nvfp4")

    @property
    def multiplies_int8(self) -> bool:
        """Whether kernels multiply int8 activations with one scale by it: int8 too, one scale per output, around 0."""
        return self.dtype == "int8" and self.group is None and self.symmetric

    @property
    def bits(self) -> int:
        return _BITS.get(self.dtype, 8)

    @property
    def low(self) -> int:
        """The lowest integer."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        """The highest integer."""
        return self.low + (1 << self.bits) - 1

    def whole_block(self, cols: int, smallest: int = 16) -> int | None:
        """Return the largest block that both the group and `cols` consist of, at least `smallest`; None without one.

        A group that does not divide the inputs is whole blocks with a scale that repeats.
        """
        block = math.gcd(self.group or 0, cols)
        return block if self.group is not None and block >= smallest else None

    def groups(self, cols: int) -> int:
        """Return how many groups a row of `cols` inputs has; the last one may be ragged."""
        return 1 if self.group is None else -(-cols // self.group)
