"""What a search chooses: a storage for each unit, which is matrices that are better stored alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgec.backends.backend import Limits
from edgec.errors import PlanError, UsageError
from edgec.frontends.architecture import Decoder
from edgec.quantize.algorithms import algorithm_of
from edgec.quantize.scheme import Scheme
from edgec.spec.layers import matrix_names
from edgec.spec.load import algorithm_names
from edgec.spec.operation import SAME_INPUT, Storage
from edgec.spec.profile import GROUP_SIZES, Profile, Weights
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
    """

    name: str
    matrices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A way to store a unit; `label` names it on the command line and in tables."""

    label: str
    weights: Weights

    @property
    def storage(self) -> Storage:
        return self.weights.storage()


def units_of(decoder: Decoder) -> list[Unit]:
    """Return the units of a model in the order of the graph, the embedding first."""
    groups: dict[str, list[str]] = {}
    for matrix in matrix_names(decoder):
        block, _, name = matrix.rpartition(".")
        family = next((family for family in SAME_INPUT if name in family), (name,))
        groups.setdefault(f"{block}.{family[0]}", []).append(matrix)
    found = [Unit(EMBEDDING)]
    for matrices in groups.values():
        block = matrices[0].rpartition(".")[0]
        names = [matrix.rpartition(".")[2] for matrix in matrices]
        joined = "".join(names) if max(map(len, names)) == 1 else "+".join(names)
        found.append(Unit(f"{block}.{joined}", tuple(matrices)))
    return found


def candidates_of(wanted: Sequence[str], profile: Profile, target: Target, limits: Limits) -> list[Candidate]:
    """Return the candidates that a target and a backend take.

    Integers below 8 bits are asymmetric where the profile's are, and rounded by the profile's algorithm unless the
    label names one. Labels that mean the same count once.

    Args:
        wanted: labels: a dtype, then `/group` for integers in groups, then `/algorithm`; empty for the usual ones.
        profile: the wishes.
        target: the device.
        limits: of the backend.

    Raises:
        UsageError: a label is wrong.
        PlanError: the target or the backend takes none, or not one that was asked for by name.
    """
    different: dict[Storage, Candidate] = {}
    for label in wanted or DEFAULT:
        found = candidate(label, profile.weights)
        different.setdefault(found.storage, found)
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


def candidate(label: str, base: Weights) -> Candidate:
    """Return what a label means beside the weights of a profile.

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
    return Candidate(label, weights)


_LABELS = f"such as {', '.join(DEFAULT)}, int4/32/kquant; groups are {', '.join(map(str, GROUP_SIZES))}, channel"


def cheap(storage: Storage) -> Storage:
    """Return a storage with an algorithm that needs no more than the importance of inputs.

    Layers are measured one by one with it, as Hessians of a whole model do not fit in memory.
    """
    if not isinstance(storage, Scheme) or algorithm_of(storage).NEEDS in ("nothing", "importance"):
        return storage
    return Scheme(storage.dtype, storage.group, storage.symmetric, "mse")
