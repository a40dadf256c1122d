"""What a search chooses: a storage for each unit, which is matrices that are better stored alike."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    label names one.

    Args:
        wanted: labels: a dtype, then `/group` for integers in groups, then `/algorithm`; empty for the usual ones.
        profile: the wishes.
        target: the device.
        limits: of the backend.

    Raises:
        UsageError: a label is wrong.
        PlanError: the target or the backend takes none, or not one that was asked for by name.
    """
    found = [_candidate(label, profile.weights) for label in wanted or DEFAULT]
    takes = limits.weights & set(target.weight_dtypes)
    fitting = [c for c in found if c.weights.dtype in takes and (c.weights.symmetric or limits.zero_points)]
    refused = [c.label for c in found if c not in fitting]
    if not fitting or (wanted and refused):
        raise PlanError(
            f"target '{target.name}' does not take {', '.join(refused)}", hint=f"it takes {', '.join(sorted(takes))}"
        )
    return fitting


def _candidate(label: str, base: Weights) -> Candidate:
    dtype, _, rest = label.partition("/")
    group, _, algorithm = rest.partition("/")
    narrow = dtype == "int4"
    integers = isinstance(base.storage(), Scheme) and base.dtype == "int4"
    try:
        weights = Weights(
            dtype=dtype,  # type: ignore[arg-type]
            group_size=int(group) if group.isdecimal() else "channel",  # type: ignore[arg-type]
            symmetric=base.symmetric or not narrow,
            algorithm=algorithm or ((base.algorithm if integers else "mse") if narrow else "rtn"),
        )
        groups = ("", "channel", *map(str, GROUP_SIZES))
        valid = dtype in ("fp32", "fp16", "fp8", "int8", "int4", "nvfp4") and group in groups
    except ValueError as error:
        raise UsageError(f"'{label}' is no storage: {error}", hint=_LABELS) from error
    if not valid or (rest and dtype in ("fp32", "fp16")) or weights.algorithm not in algorithm_names():
        raise UsageError(f"'{label}' is no storage", hint=_LABELS)
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
