"""Plan: Checkpoint x Target x Profile, with every default resolved and every step checked before anything is built."""

import hashlib
from importlib.util import find_spec

import msgspec

from edgec import __version__
from edgec.checkpoint.model import Checkpoint
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder
from edgec.quantize.scheme import Scheme
from edgec.spec.profile import Profile, Verify, Weights
from edgec.spec.target import Target

Storage = Scheme | str
"""How weights are stored: a scheme of integers, or "fp32" or "fp16"."""


class Source(msgspec.Struct, frozen=True):
    """The checkpoint that a plan is for; `files` maps each file that goes into the build to its sha256."""

    format: str
    family: str
    parameters: int
    files: dict[str, str]


class Estimate(msgspec.Struct, frozen=True):
    """What the artifact will need, from shapes alone."""

    weight_bytes: int
    kv_cache_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides what a build writes.

    Args:
        edgec: version of the compiler.
        weights: storage of the matrices inside the layers.
        embedding: storage of the token embedding and the output matrix.
        accuracy_level: of integer matmuls in shipped mode (1: float32 activations, 4: int8 activations).
        context_length: tokens that the artifact takes.
    """

    edgec: str
    source: Source
    target: str
    backend: str
    profile: str
    weights: Storage
    embedding: Storage
    accuracy_level: int
    context_length: int
    verify: Verify
    estimate: Estimate

    def sha256(self) -> str:
        """Return the hash of the plan's JSON, in hex."""
        return hashlib.sha256(encode_plan(self)).hexdigest()


def encode_plan(plan: Plan) -> bytes:
    """Return the plan as JSON with sorted keys, the same bytes for the same plan."""
    return msgspec.json.format(msgspec.json.encode(plan, order="sorted"), indent=2) + b"\n"


def resolve(
    checkpoint: Checkpoint, decoder: Decoder, target: Target, profile: Profile, backend: str | None = None
) -> Plan:
    """Return the plan, checked against the target.

    Args:
        checkpoint: the opened checkpoint.
        decoder: its description.
        target: the device.
        profile: the wishes.
        backend: one of the target's backends; its first one by default.

    Raises:
        PlanError: the target has no such backend, cannot compute with the profile's weights, or has too little memory.
    """
    chosen = backend or target.backends[0]
    if chosen not in target.backends:
        raise PlanError(
            f"target '{target.name}' has no backend '{chosen}'", hint=f"it has: {', '.join(target.backends)}"
        )
    embedding = profile.embedding or profile.weights
    for weights in (profile.weights, embedding):
        if weights.dtype not in target.weight_dtypes:
            raise PlanError(
                f"target '{target.name}' has no kernels for {weights.dtype} weights, which profile "
                f"'{profile.name}' asks for",
                hint=f"it takes: {', '.join(target.weight_dtypes)}",
            )
    context = min(profile.context_length, decoder.context_length)
    storages = _storage(profile.weights), _storage(embedding)
    estimate = _estimate(decoder, checkpoint, *storages, context)
    _check_memory(target, profile, estimate, context)
    parameters = sum(_count(info.shape) for info in checkpoint.tensors.values())
    return Plan(
        edgec=__version__,
        source=Source(checkpoint.format, decoder.family, parameters, checkpoint.fingerprint()),
        target=target.name,
        backend=chosen,
        profile=profile.name,
        weights=storages[0],
        embedding=storages[1],
        accuracy_level=profile.runtime.accuracy_level,
        context_length=context,
        verify=profile.verify,
        estimate=estimate,
    )


def check_backend(plan: Plan) -> None:
    """Make sure that this edgec can build what the plan asks for.

    Raises:
        PlanError: the backend is not part of this version.
    """
    if find_spec(f"edgec.backends.{plan.backend}") is None:
        raise PlanError(
            f"the plan is complete, but this version of edgec has no '{plan.backend}' backend, "
            f"which target '{plan.target}' needs",
            hint="choose a target with the onnx_cpu backend (edgec targets)",
        )


def _storage(weights: Weights) -> Storage:
    if weights.dtype in ("fp32", "fp16"):
        return weights.dtype
    group = None if weights.group_size == "channel" else weights.group_size
    return Scheme(weights.dtype, group, weights.symmetric, weights.algorithm)  # type: ignore[arg-type]


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _bytes(storage: Storage, rows: int, cols: int) -> int:
    if isinstance(storage, Scheme):
        groups = rows * storage.groups(cols)
        zero_points = 0 if storage.symmetric else groups * storage.bits // 8
        return rows * cols * storage.bits // 8 + 4 * groups + zero_points
    return rows * cols * (2 if storage == "fp16" else 4)


def _estimate(decoder: Decoder, checkpoint: Checkpoint, weights: Storage, embedding: Storage, context: int) -> Estimate:
    vocabulary = {decoder.embedding, decoder.head.weight if decoder.head else ""}
    total = 0
    for name, info in checkpoint.tensors.items():
        if len(info.shape) != 2:
            total += 4 * _count(info.shape)
        else:
            total += _bytes(embedding if name in vocabulary else weights, *info.shape)
    cache = sum(2 * 4 * layer.attention.kv_heads * layer.attention.head_dim for layer in decoder.layers) * context
    return Estimate(total, cache)


def _check_memory(target: Target, profile: Profile, estimate: Estimate, context: int) -> None:
    if target.memory_gib is None:
        return
    usable = target.memory_gib * target.memory_usable_fraction * 2**30
    if estimate.total_bytes > usable:
        raise PlanError(
            f"profile '{profile.name}' needs {estimate.weight_bytes / 2**30:.2f} GiB for weights and "
            f"{estimate.kv_cache_bytes / 2**30:.2f} GiB for the KV cache of {context} tokens; target "
            f"'{target.name}' can use {usable / 2**30:.2f} GiB",
            hint="choose a profile with fewer bits per weight, or a smaller context_length in a profile of your own",
        )
