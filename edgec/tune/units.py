"""What a search chooses: a storage for each unit, which is matrices that are better stored alike, and its zeros."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgec.backends.backend import Limits
from edgec.errors import PlanError, UsageError
from edgec.frontends.architecture import Decoder
from edgec.prune.methods import method_of
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.scheme import Scheme
from edgec.spec.layers import matching, matrix_names
from edgec.spec.load import algorithm_names
from edgec.spec.operation import SAME_INPUT, Storage
from edgec.spec.profile import GROUP_SIZES, Profile, Weights
from edgec.spec.prune import Method, Sparse
from edgec.spec.target import Target

EMBEDDING = "embedding"
"""The unit of the token embedding and the output matrix, which profiles store alike."""

DEFAULT = ("int4/32", "int4/64", "int4/128", "int8", "fp16")

_FLOATS = ("fp32", "fp16")
_DTYPES = (*_FLOATS, "fp8", "int8", "int4", "nvfp4")
_GROUPS: dict[str, Any] = {"channel": "channel"} | {str(size): size for size in GROUP_SIZES}


@dataclass(frozen=True)
class Unit:
    """Matrices of one input, which runtimes join where they are stored alike, or a matrix by itself.

    Args:
        name: such as `layers.3.attention.qkv`.
        matrices: their names; none for the embedding.
        dense: it is never sparse: the embedding, and what the base profile's `[sparse]` skips.
    """

    name: str
    matrices: tuple[str, ...] = ()
    dense: bool = False


@dataclass(frozen=True)
class Candidate:
    """A way to store a unit.

    Args:
        label: its name on the command line and in tables.
        weights: how its matrices are stored.
        pattern: of the weights that are 0, as `Sparse` has it; None where it is dense.
        method: that chooses those.
    """

    label: str
    weights: Weights
    pattern: str | None = None
    method: Method = "wanda"

    @property
    def storage(self) -> Storage:
        return self.weights.storage()

    def of(self, unit: Unit) -> "Candidate":
        """Return what this means for a unit: no zeros where it is never sparse."""
        return self.dense if unit.dense else self

    @property
    def dense(self) -> "Candidate":
        """The same storage without zeros."""
        return replace(self, label=self.label.partition("+")[0], pattern=None, method="wanda")


def units_of(decoder: Decoder, sparse: Sparse | None = None) -> list[Unit]:
    """Return the units of a model in the order of the graph, the embedding first.

    Args:
        decoder: the model.
        sparse: of the base profile; a unit with a matrix that it skips is never sparse.

    Raises:
        UsageError: a pattern in `skip` matches no matrix.
    """
    skip = () if sparse is None else sparse.skip
    skipped = {name for pattern in skip for name in matching(pattern, matrix_names(decoder), "sparse.skip")}
    groups: dict[str, list[str]] = {}
    for matrix in matrix_names(decoder):
        block, _, name = matrix.rpartition(".")
        family = next((family for family in SAME_INPUT if name in family), (name,))
        groups.setdefault(f"{block}.{family[0]}", []).append(matrix)
    found = [Unit(EMBEDDING, dense=True)]
    for matrices in groups.values():
        block = matrices[0].rpartition(".")[0]
        names = [matrix.rpartition(".")[2] for matrix in matrices]
        joined = "".join(names) if max(map(len, names)) == 1 else "+".join(names)
        found.append(Unit(f"{block}.{joined}", tuple(matrices), not skipped.isdisjoint(matrices)))
    return found


def candidates_of(
    wanted: Sequence[str], profile: Profile, target: Target, limits: Limits, more: Collection[str] = ()
) -> list[Candidate]:
    """Return the candidates that a target and a backend take.

    Integers below 8 bits are asymmetric where the profile's are, and rounded by the profile's algorithm unless the
    label names one. Labels that mean the same count once. A profile with `[sparse]` wants zeros: the usual candidates
    then have its pattern, all of them, and what is to stay dense is in its `skip`; labels that are given say for
    themselves what may be sparse.

    Args:
        wanted: labels: a dtype, then `/group` for integers in groups, then `/algorithm`, then `+pattern` of zeros;
            empty for the usual ones.
        profile: the wishes.
        target: the device.
        limits: of the backend.
        more: labels that are usual besides.

    Raises:
        UsageError: a label is wrong, or labels have different patterns.
        PlanError: the target or the backend takes none, or not one that was asked for by name.
    """
    zeros = f"+{profile.sparse.pattern}" if profile.sparse else ""
    usual = [*(label + zeros for label in DEFAULT), *("" if zeros else more)]
    different: dict[tuple[Storage, str | None], Candidate] = {}
    for label in wanted or usual:
        found = candidate(label, profile.weights, profile.sparse)
        different.setdefault((found.storage, found.pattern), found)
    patterns = sorted({c.pattern for c in different.values() if c.pattern})
    if len(patterns) > 1:
        raise UsageError(
            f"candidates have patterns of {' and of '.join(patterns)}", hint="a profile has one pattern: choose one"
        )
    takes = limits.weights & set(target.weight_dtypes)
    fitting = [
        c for c in different.values() if c.weights.dtype in takes and (c.weights.symmetric or limits.zero_points)
    ]
    refused = [c.label for c in different.values() if c not in fitting]
    if not fitting or (wanted and refused):
        raise PlanError(
            f"target '{target.name}' does not take {', '.join(refused)}", hint=f"it takes {', '.join(sorted(takes))}"
        )
    return fitting


def candidate(label: str, base: Weights, sparse: Sparse | None = None) -> Candidate:
    """Return what a label means beside the weights and the zeros of a profile.

    Raises:
        UsageError: it means nothing.
    """
    storage, plus, zeros = label.partition("+")
    weights = _weights(storage, base)
    if not plus:
        return Candidate(label, weights)
    try:
        pattern = Sparse(pattern=zeros).parsed
    except ValueError as error:
        raise UsageError(f"'{label}' is no candidate: {error}", hint=_LABELS) from error
    method: Method = "wanda" if sparse is None else sparse.method
    return Candidate(f"{storage}+{pattern}", weights, str(pattern), method)


def _weights(label: str, base: Weights) -> Weights:
    """Return what a label without a pattern means beside the weights of a profile.

    Raises:
        UsageError: it means nothing.
    """
    dtype, *rest = label.split("/")
    group, algorithm = [*rest, None, None][:2]
    valid = dtype in _DTYPES and (group is None or group in _GROUPS) and len(rest) <= 2
    if not valid or (algorithm is not None and algorithm not in algorithm_names()) or (rest and dtype in _FLOATS):
        raise UsageError(f"'{label}' is no storage", hint=_LABELS)
    narrow = dtype == "int4"
    usual = (base.algorithm if base.dtype == "int4" else "mse") if narrow else "rtn"
    try:
        weights = Weights(
            dtype=dtype,  # type: ignore[arg-type]
            group_size=_GROUPS[group or "channel"],
            symmetric=base.symmetric or not narrow,
            algorithm=algorithm or usual,
        )
    except ValueError as error:  # fp8 and nvfp4 do not take all groups and algorithms
        raise UsageError(f"'{label}' is no storage: {error}", hint=_LABELS) from error
    if algorithm and cheap(weights.storage()) != weights.storage():
        raise UsageError(
            f"'{label}': single layers are not measured with {algorithm}",
            hint="leave the algorithm out, and give it in the base profile; layers are then ranked by mse",
        )
    return weights


_LABELS = (
    f"such as {', '.join(DEFAULT)}, int4/32/kquant, int8+2:4, fp16+50%; "
    f"groups are {', '.join(map(str, GROUP_SIZES))}, channel"
)


def cheap(storage: Storage) -> Storage:
    """Return a storage with an algorithm that needs no more than the importance of inputs.

    Layers are measured one by one with it, as Hessians of a whole model do not fit in memory.
    """
    if not isinstance(storage, Scheme) or algorithm_of(storage).NEEDS in ("nothing", "importance"):
        return storage
    return Scheme(storage.dtype, storage.group, storage.symmetric, "mse")


def cheap_method(name: Method) -> Method:
    """Return a method of pruning that needs no more than the importance of inputs: `wanda` for `sparsegpt`."""
    return name if method_of(name).NEEDS in ("nothing", "importance") else "wanda"
