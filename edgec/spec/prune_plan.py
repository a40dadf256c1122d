"""What a plan prunes: the wishes of a profile, resolved for one model."""

import math
from bisect import bisect_left

import msgspec

from edgec.checkpoint.model import Checkpoint
from edgec.errors import PlanError, UsageError
from edgec.frontends.architecture import Decoder
from edgec.frontends.decoder_tensors import expected_shapes
from edgec.frontends.families import describe
from edgec.prune.keep import Shares, Sizes, first, full, sizes
from edgec.prune.slim import slim
from edgec.spec.layers import matching, matrix_names
from edgec.spec.prune import (
    Allocation,
    Importance,
    Method,
    Part,
    Slim,
    Sparse,
    slim_reads_text,
    sparse_reads_text,
)

# Shares are tried in steps of so many parts of a whole.
_STEPS = 400


class SparsePlan(msgspec.Struct, frozen=True):
    """The profile's `Sparse`, and the matrices that it is for."""

    pattern: str
    method: Method
    allocation: Allocation
    matrices: tuple[str, ...]

    @property
    def reads_text(self) -> bool:
        """Whether it looks at what flows through the model."""
        return sparse_reads_text(self.method, self.allocation)


class SlimPlan(msgspec.Struct, frozen=True):
    """The sizes of what stays, how many parameters that is, what goes, and what decides which of its parts stay."""

    sizes: Sizes
    parameters: int
    parts: tuple[Part, ...]
    importance: Importance

    @property
    def reads_text(self) -> bool:
        """Whether it looks at what flows through the model."""
        return slim_reads_text(self.parts, self.importance)


def resolve_sparse(decoder: Decoder, wishes: Sparse, where: str) -> SparsePlan:
    """Return which matrices become sparse.

    Args:
        decoder: what is left after parts of the model went.
        wishes: of the profile.
        where: the profile's name, for messages.

    Raises:
        UsageError: a pattern in `skip` matches no matrix, or they match all.
    """
    names = matrix_names(decoder)
    skipped = {name for pattern in wishes.skip for name in matching(pattern, names, f"{where}: sparse.skip")}
    stay = tuple(name for name in names if name not in skipped)
    if not stay:
        raise UsageError("no matrix would become sparse", where=f"{where}: sparse.skip", hint="skip fewer")
    return SparsePlan(wishes.pattern, wishes.method, wishes.allocation, stay)


def resolve_slim(
    checkpoint: Checkpoint, decoder: Decoder, wishes: Slim, ignored: frozenset[str] = frozenset()
) -> tuple[SlimPlan, Decoder]:
    """Return the sizes of what stays, and a decoder of these sizes.

    The smallest equal share of all parts is taken with which at least the wanted share of parameters goes, and whose
    sizes the model's config can say.

    Args:
        checkpoint: the model.
        decoder: its description.
        wishes: of the profile.
        ignored: keys of config.json that the user declared harmless.

    Raises:
        PlanError: so much cannot go from these parts, or the model's config cannot say what would be left.
    """
    allowed = (1 - wishes.parameters) * parameters(decoder)
    steps, refusal = _steps(decoder, wishes)
    known: dict[int, Decoder | PlanError] = {}

    def found(index: int) -> Decoder | PlanError:
        if index not in known:
            try:
                known[index] = _of_sizes(checkpoint, decoder, steps[index], ignored)
            except PlanError as error:  # the config cannot say that
                known[index] = error
        return known[index]

    def next_known(index: int) -> int:
        """Return the first of the sizes from `index` on that the config can say."""
        return next((i for i in range(index, len(steps)) if isinstance(found(i), Decoder)), len(steps))

    def enough(index: int) -> bool:
        smaller = found(chosen) if (chosen := next_known(index)) < len(steps) else None
        return not isinstance(smaller, Decoder) or parameters(smaller) <= allowed

    chosen = next_known(bisect_left(range(len(steps)), True, key=enough))
    if chosen == len(steps):
        refused = [error for error in known.values() if isinstance(error, PlanError)]
        raise (refused[-1] if refused else None) or refusal or _too_much(wishes)
    smaller = found(chosen)
    assert isinstance(smaller, Decoder)
    return SlimPlan(steps[chosen], parameters(smaller), wishes.parts, wishes.importance), smaller


def _too_much(wishes: Slim) -> PlanError:
    return PlanError(
        f"without {' and '.join(wishes.parts)} more than {1 - wishes.parameters:.0%} of the parameters would be left",
        hint="remove less, or from more parts",
    )


def _steps(decoder: Decoder, wishes: Slim) -> tuple[list[Sizes], PlanError | None]:
    """Return all smaller sizes, from large to small, and why there are none beyond them."""
    found = [full(decoder)]
    for step in range(1, _STEPS):
        try:
            smaller = sizes(decoder, Shares(**dict.fromkeys(wishes.parts, step / _STEPS)), wishes.multiple)
        except PlanError as error:
            return found[1:], error
        if smaller != found[-1]:
            found.append(smaller)
    return found[1:], None


def _of_sizes(checkpoint: Checkpoint, decoder: Decoder, wanted: Sizes, ignored: frozenset[str]) -> Decoder:
    return describe(slim(checkpoint, decoder, first(decoder, wanted), ignored), ignored)


def left_of(
    checkpoint: Checkpoint, decoder: Decoder, wanted: SlimPlan | None, ignored: frozenset[str] = frozenset()
) -> Decoder:
    """Return a decoder of the sizes that a plan wants; `decoder` itself where all of it stays."""
    if wanted is None:
        return decoder
    return _of_sizes(checkpoint, decoder, wanted.sizes, ignored)


def parameters(decoder: Decoder) -> int:
    """Return how many parameters a decoder has."""
    return sum(math.prod(shape) for shape in expected_shapes(decoder).values())
