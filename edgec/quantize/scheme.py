"""How the numbers of one weight matrix are stored."""

from typing import Literal

import msgspec


class Scheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Integers with a scale for each group of `group` inputs of each output, or for each output (`group` None).

    Symmetric codes are signed (int4: -8..7, int8: -128..127) around 0; asymmetric ones are unsigned with a zero point.
    """

    dtype: Literal["int4", "int8"]
    group: int | None
    symmetric: bool = True
    algorithm: str = "rtn"

    @property
    def bits(self) -> int:
        return 4 if self.dtype == "int4" else 8

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        return self.low + (1 << self.bits) - 1

    def groups(self, cols: int) -> int:
        """Return how many groups a row of `cols` inputs has; the last one may be ragged."""
        return 1 if self.group is None else -(-cols // self.group)
