"""What a profile wants to be pruned: its `[sparse]` and `[slim]` tables."""

from typing import Annotated, Literal

import msgspec

from edgec.prune.pattern import Pattern

Method = Literal["magnitude", "wanda", "sparsegpt"]
Allocation = Literal["uniform", "global", "owl", "sensitivity"]
Importance = Literal["magnitude", "activation", "wanda", "taylor"]
OWL_SPREAD = 0.08
"""How far a layer's share of zeros may be from that of all, with "owl"."""
Part = Literal["layers", "mlp", "heads", "hidden"]


class SparseWishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both decoders and networks say of weights that become 0."""

    pattern: str
    method: Method = "sparsegpt"

    def __post_init__(self) -> None:
        if self.parsed.sparsity == 0:
            raise ValueError(f"{self.pattern} has no zeros")

    @property
    def parsed(self) -> Pattern:
        """The pattern.

        Raises:
            ValueError: there is no such pattern.
        """
        return Pattern.parse(self.pattern)


class Sparse(SparseWishes, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights inside the layers that become 0; shapes stay.

    Args:
        pattern: "2:4", "4:8" (so many of so many consecutive inputs of an output stay), or a share of zeros as "50%".
        method: a file in edgec/prune/methods; "sparsegpt" changes the weights that stay, too.
        allocation: of a share of zeros over the matrices: "uniform", by one threshold for all magnitudes ("global"),
            less of it in blocks with more outliers ("owl"), or in those where it changes more of what the model
            predicts ("sensitivity", measured; takes minutes). Patterns as 2:4 are uniform.
        skip: matrices that stay dense, by patterns as in a shell: `layers.0.*`, `layers.*.mlp.down`.
    """

    allocation: Allocation = "uniform"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parsed.block is not None and self.allocation != "uniform":
            raise ValueError(f'a pattern of {self.pattern} is the same everywhere: allocation = "uniform"')
        if self.allocation == "owl" and not OWL_SPREAD <= self.parsed.sparsity < 1 - OWL_SPREAD:
            raise ValueError(
                f"owl gives layers up to {OWL_SPREAD:.0%} more or less, which {self.pattern} has no room for"
            )

    @property
    def reads_text(self) -> bool:
        """Whether it looks at what flows through the model."""
        return sparse_reads_text(self.method, self.allocation)


class Slim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Parts of the model that go; shapes shrink.

    Args:
        parameters: the share of all parameters that goes, at least; parts go in steps, so it may be a little more.
        parts: what goes, in equal shares: whole "layers", inner units of the "mlp", attention "heads" in
            groups that share keys and values, dimensions of the "hidden" state.
        importance: what decides which.
        multiple: of units and dimensions that stay: what kernels like.
    """

    parameters: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1)] = ("mlp",)
    importance: Importance = "taylor"
    multiple: Annotated[int, msgspec.Meta(ge=1)] = 64

    def __post_init__(self) -> None:
        if len(set(self.parts)) < len(self.parts):
            raise ValueError("a part is there twice")

    @property
    def reads_text(self) -> bool:
        """Whether it looks at what flows through the model."""
        return slim_reads_text(self.parts, self.importance)


def sparse_reads_text(method: Method, allocation: Allocation) -> bool:
    """Say whether weights become 0 by what flows through the model, or by what they are alone."""
    return method != "magnitude" or allocation in ("owl", "sensitivity")


def slim_reads_text(parts: tuple[Part, ...], importance: Importance) -> bool:
    """Say whether parts go by what flows through the model, or by their weights alone: layers by their influence."""
    return "layers" in parts or importance != "magnitude"
