"""Which parts of a decoder stay when its shapes shrink. No weights are read here."""

from typing import NamedTuple

import msgspec

from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder

Indices = tuple[int, ...]


class Shares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What share of a decoder to remove, each from 0 to less than 1.

    Args:
        layers: of the layers.
        mlp: of the inner units of each MLP.
        heads: of the attention heads of each layer, in groups that share keys and values.
        hidden: of the embedding's width, which is that of the residual stream.
    """

    layers: float = 0.0
    mlp: float = 0.0
    heads: float = 0.0
    hidden: float = 0.0


class Sizes(msgspec.Struct, frozen=True):
    """How much of each there is: layers, inner units and key-value groups in each of them, dimensions of the stream."""

    layers: int
    mlp: int
    groups: int
    hidden: int


class Keep(msgspec.Struct, frozen=True):
    """What stays, by its numbers in the whole decoder, in ascending order.

    Configs have one size for all layers, so each layer keeps as many units and groups as the others.

    Args:
        layers: whole layers.
        mlp: for each layer that stays, inner units of its MLP.
        groups: for each layer that stays, key-value heads; all query heads of a group stay or go with it.
        hidden: dimensions of the residual stream.
    """

    layers: Indices
    mlp: tuple[Indices, ...]
    groups: tuple[Indices, ...]
    hidden: Indices

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.layers), len(self.mlp[0]), len(self.groups[0]), len(self.hidden))


class _Part(NamedTuple):
    name: str
    what: str
    size: int
    multiple: int


def full(decoder: Decoder) -> Sizes:
    """Return the sizes that `decoder` has."""
    layer = decoder.layers[0]
    return Sizes(len(decoder.layers), layer.mlp.up.size[1], layer.attention.kv_heads, decoder.hidden_size)


def sizes(decoder: Decoder, shares: Shares, multiple: int = 64) -> Sizes:
    """Return the sizes of `decoder` without these shares, rounded to the nearest that may be.

    Args:
        decoder: the whole decoder.
        shares: what to remove; what has a share of 0 keeps its size, multiple or not.
        multiple: that the widths of MLPs and of the residual stream must be of, because kernels like it.

    Raises:
        PlanError: a share is not from 0 to less than 1, or nothing would be left.
    """
    wanted = (shares.layers, shares.mlp, shares.heads, shares.hidden)
    return Sizes(*(_smaller(part, share) for part, share in zip(_parts(decoder, multiple), wanted, strict=True)))


def first(decoder: Decoder, sizes: Sizes) -> Keep:
    """Keep the first of everything: for predictions, which depend on shapes alone.

    Raises:
        PlanError: `sizes` are not within those of `decoder`.
    """
    layers = range(sizes.layers)
    mlp, groups = (tuple(tuple(range(size)) for _ in layers) for size in (sizes.mlp, sizes.groups))
    keep = Keep(tuple(layers), mlp, groups, tuple(range(sizes.hidden)))
    check(keep, decoder)
    return keep


def check(keep: Keep, decoder: Decoder) -> None:
    """Make sure that `keep` is a selection of what `decoder` has.

    Raises:
        PlanError: nothing is left of something, layers keep different numbers, or an index is not in ascending order
            or not there.
    """
    layers, *others = _parts(decoder, 1)
    _check_indices(layers, keep.layers)
    for part, per_layer in zip(others, (keep.mlp, keep.groups, (keep.hidden,)), strict=True):
        if part.name != "hidden" and len(per_layer) != len(keep.layers):
            raise PlanError(
                f"{len(keep.layers)} layers stay, but {part.what} are chosen for {len(per_layer)}", where=part.name
            )
        for indices in per_layer:
            _check_indices(part, indices)
        if len({len(indices) for indices in per_layer}) > 1:
            raise PlanError(
                f"layers keep different numbers of {part.what}",
                where=part.name,
                hint="a config has one size for all layers: keep as many in each",
            )


def _check_indices(part: _Part, indices: Indices) -> None:
    if not indices:
        raise PlanError(f"none of the {part.size} {part.what} would be left", where=part.name, hint="remove less")
    if list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= part.size:
        raise PlanError(
            f"the {part.what} that stay are not {len(indices)} ascending numbers from 0 to {part.size - 1}",
            where=part.name,
        )


def _parts(decoder: Decoder, multiple: int) -> tuple[_Part, _Part, _Part, _Part]:
    there = full(decoder)
    return (
        _Part("layers", "layers", there.layers, 1),
        _Part("mlp", "inner units of MLPs", there.mlp, multiple),
        _Part("heads", "groups of attention heads", there.groups, 1),
        _Part("hidden", "dimensions of the residual stream", there.hidden, multiple),
    )


def _smaller(part: _Part, share: float) -> int:
    if not 0 <= share < 1:
        raise PlanError(
            f"{share:g} is no share of the {part.what} that can be removed",
            where=part.name,
            hint="give a number from 0 to less than 1",
        )
    if share == 0:
        return part.size
    left = part.size * (1 - share)
    kept = min(int(left / part.multiple + 0.5), part.size // part.multiple) * part.multiple
    if not kept:
        step = f", and the nearest multiple of {part.multiple} is 0" if part.multiple > 1 else ""
        raise PlanError(
            f"without {100 * share:.3g} % of the {part.size} {part.what}, {left:.1f} would be left{step}",
            where=part.name,
            hint="remove less, or round to a smaller multiple" if part.multiple > 1 else "remove less",
        )
    return kept
