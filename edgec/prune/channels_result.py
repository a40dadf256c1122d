"""What is left of a network's channels, in plain numbers: nothing here imports a graph."""

import msgspec


class Cost(msgspec.Struct, frozen=True):
    """What a network costs.

    Args:
        parameters: floats in its constants.
        multiply_adds: of Conv, ConvTranspose, Gemm and MatMul, for one sample; None where a size other than the number
            of samples is open.
    """

    parameters: int
    multiply_adds: int | None


class GroupReport(msgspec.Struct, frozen=True):
    """What became of the channels of some layers.

    Args:
        layers: that give them.
        channels: that there were.
        kept: that are left.
        refused: why none could go; None if some could.
    """

    layers: tuple[str, ...]
    channels: int
    kept: int
    refused: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the group: that of its first layer."""
        return self.layers[0]
