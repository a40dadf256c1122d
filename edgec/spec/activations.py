"""Which matrices are multiplied with int8 activations whose scales are known before the model runs."""

from edgec.backends.backend import Limits
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder
from edgec.quantize.scheme import Scheme
from edgec.spec.layers import matching, matrix_names
from edgec.spec.operation import SAME_INPUT, StorageOf
from edgec.spec.profile import Profile
from edgec.spec.target import Target


def static_matrices(decoder: Decoder, storage_of: StorageOf, profile: Profile) -> tuple[str, ...]:
    """Return the names of those matrices, in the order of the graph; they are in the layers, and their weights int8.

    Matrices that read the same input read the same integers: what skips one skips all of them.

    Raises:
        PlanError: the profile asks for static activations, and no matrix takes them.
        UsageError: a pattern of the profile matches no matrix.
    """
    wanted = profile.activations
    if wanted is None or wanted.mode != "static":
        return ()
    names = matrix_names(decoder)
    where = f"profile '{profile.name}': activations.skip"
    skipped = {name for pattern in wanted.skip for name in matching(pattern, names, where)}
    skipped |= {f"{block}.{other}" for name in skipped for block, other in _family(name)}
    found = tuple(name for name in names if name not in skipped and _takes_int8(storage_of(name)))
    if not found:
        raise PlanError(
            f"profile '{profile.name}' asks for static activations, and no matrix takes them",
            where="activations.mode",
            hint='they are for weights with dtype = "int8", group_size = "channel" and symmetric = true',
        )
    return found


def check_activations(target: Target, profile: Profile, limits: Limits, backend: str) -> None:
    """Make sure that a backend has the activations, and the scales for the cache, that a profile asks for.

    Raises:
        PlanError: it does not.
    """
    if profile.runtime.kv_cache == "int8" and limits.static_cache and profile.calibration is None:
        raise PlanError(
            f"the {backend} backend takes the scales of an int8 key-value cache from a text, and profile "
            f"'{profile.name}' has none",
            where="runtime.kv_cache",
            hint="give the profile a [calibration]",
        )
    if profile.runtime.kv_cache == "int8" and backend == "tensorrt" and "tensorrt_rtx" not in target.runtimes:
        raise PlanError(
            f"target '{target.name}' builds its own engine, and its TensorRT may not take an int8 key-value cache with "
            "a scale for each head: that is known of TensorRT-RTX only",
            where="runtime.kv_cache",
            hint='choose a profile with kv_cache = "float"',
        )
    wanted = profile.activations
    if wanted is None:  # whatever the backend does
        return
    kind = "float" if wanted.dtype == "float" else wanted.mode
    if kind not in limits.activations:
        raise PlanError(
            f"the {backend} backend has no {kind} activations, which profile '{profile.name}' asks for",
            where="activations",
            hint=f"it has: {', '.join(sorted(limits.activations))}",
        )


def _takes_int8(storage: object) -> bool:
    return isinstance(storage, Scheme) and storage.multiplies_int8


def _family(name: str) -> list[tuple[str, str]]:
    """Return (block, matrix) of what reads the same input."""
    block, _, matrix = name.rpartition(".")
    return [(block, other) for family in SAME_INPUT if matrix in family for other in family]
