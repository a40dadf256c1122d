"""What a plan prunes: the wishes of a profile, resolved for one model."""

import math

import msgspec

from edgec.checkpoint.model import Checkpoint
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder
from edgec.frontends.decoder_tensors import expected_shapes
from edgec.frontends.families import describe
from edgec.prune.keep import Shares, Sizes, first, full, sizes
from edgec.prune.slim import slim
from edgec.spec.layers import matching, matrix_names
from edgec.spec.prune import Allocation, Importance, Method, Part, Slim, Sparse

# Shares are tried in steps of so many parts of a whole.
_STEPS = 400


class SparsePlan(msgspec.Struct, frozen=True):
    """The profile's `Sparse`, and the matrices that it is for."""

    pattern: str
    method: Method
    allocation: Allocation
    matrices: tuple[str, ...]


class SlimPlan(msgspec.Struct, frozen=True):
    """The sizes of what stays, how many parameters that is, what goes, and what decides which of its parts stay."""

    sizes: Sizes
    parameters: int
    parts: tuple[Part, ...]
    importance: Importance


def resolve_sparse(decoder: Decoder, wishes: Sparse, where: str) -> SparsePlan:
    """Return which matrices become sparse.

    Args:
        decoder: what is left after parts of the model went.
        wishes: of the profile.
        where: the profile's name, for messages.

    Raises:
        UsageError: a pattern in `skip` matches no matrix.
    """
    names = matrix_names(decoder)
    skipped = {name for pattern in wishes.skip for name in matching(pattern, names, f"{where}: sparse.skip")}
    stay = tuple(name for name in names if name not in skipped)
    return SparsePlan(wishes.pattern, wishes.method, wishes.allocation, stay)


def resolve_slim(
    checkpoint: Checkpoint, decoder: Decoder, wishes: Slim, ignored: frozenset[str] = frozenset()
) -> tuple[SlimPlan, Decoder]:
    """Return the sizes of what stays, and a decoder of these sizes.

    The smallest equal share of all parts is taken with which at least the wanted share of parameters goes.

    Args:
        checkpoint: the model.
        decoder: its description.
        wishes: of the profile.
        ignored: keys of config.json that the user declared harmless.

    Raises:
        PlanError: so much cannot go from these parts, or the model's config cannot say what would be left.
    """
    allowed = (1 - wishes.parameters) * parameters(decoder)
    tried = full(decoder)
    for step in range(1, _STEPS):
        found = sizes(decoder, Shares(**dict.fromkeys(wishes.parts, step / _STEPS)), wishes.multiple)
        if found == tried:
            continue
        tried = found
        smaller = describe(slim(checkpoint, decoder, first(decoder, found), ignored), ignored)
        if (stay := parameters(smaller)) <= allowed:
            return SlimPlan(found, stay, wishes.parts, wishes.importance), smaller
    raise PlanError(
        f"without {' and '.join(wishes.parts)} more than {1 - wishes.parameters:.0%} of the parameters would be left",
        hint="remove less, or from more parts",
    )


def left_of(
    checkpoint: Checkpoint, decoder: Decoder, wanted: SlimPlan | None, ignored: frozenset[str] = frozenset()
) -> Decoder:
    """Return a decoder of the sizes that a plan wants; `decoder` itself where all of it stays."""
    if wanted is None:
        return decoder
    return describe(slim(checkpoint, decoder, first(decoder, wanted.sizes), ignored), ignored)


def parameters(decoder: Decoder) -> int:
    """Return how many parameters a decoder has."""
    return sum(math.prod(shape) for shape in expected_shapes(decoder).values())
