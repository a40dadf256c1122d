"""Plan: Checkpoint x Target x Profile, with every default resolved and every step checked before anything is built."""

import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec

from edgec import __version__
from edgec.backends.backend import Limits, get_backend
from edgec.calibrate.dataset import hash_files
from edgec.checkpoint.model import Checkpoint
from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder
from edgec.frontends.rotation import check_rotation
from edgec.quantize.scheme import NVFP4_GROUP, Scheme
from edgec.spec.activations import check_activations, static_matrices
from edgec.spec.layers import MatrixStorage, resolve_layers, storage_lookup
from edgec.spec.load import list_profiles
from edgec.spec.memory import Estimate, estimate, usable_bytes
from edgec.spec.operation import Storage, StorageOf, operations
from edgec.spec.profile import Profile, Verify
from edgec.spec.prune_plan import SlimPlan, SparsePlan, resolve_slim, resolve_sparse
from edgec.spec.target import Target


class Source(msgspec.Struct, frozen=True):
    """The checkpoint that a plan is for; `files` maps each file that goes into the build to its sha256."""

    format: str
    family: str
    parameters: int
    files: dict[str, str]


class CalibrationText(msgspec.Struct, frozen=True):
    """The profile's `Calibration`; `files` maps each text to its sha256."""

    files: dict[str, str]
    tokens: int
    window: int
    seed: int
    device: str
    steps: int


class StaticActivations(msgspec.Struct, frozen=True):
    """The matrices whose inputs are rounded to int8 with calibrated scales, and how calibration finds those."""

    matrices: tuple[str, ...]
    range: Literal["minmax", "percentile", "mse"]


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides what a build writes.

    Args:
        edgec: version of the compiler.
        weights: storage of the matrices inside the layers, but for those in `layers`.
        embedding: storage of the token embedding and the output matrix.
        layers: matrix -> its storage, where that is not `weights`.
        accuracy_level: of integer matmuls in shipped mode (1: float32 activations, 4: int8 activations), where they are
            not static.
        transforms: of the float weights, in order.
        static: the matrices with static int8 activations, or None.
        kv_cache: "float" or "int8".
        context_length: tokens that the artifact takes.
        calibration: the text for what looks at one, or None where nothing does.
        slim: what stays of the model; all else here is about that. None if all does.
        sparse: the weights that become 0, or None.
    """

    edgec: str
    source: Source
    target: str
    backend: str
    profile: str
    weights: Storage
    embedding: Storage
    accuracy_level: int
    kv_cache: str
    context_length: int
    verify: Verify
    estimate: Estimate
    calibration: CalibrationText | None = None
    layers: dict[str, MatrixStorage] = {}
    static: StaticActivations | None = None
    transforms: tuple[str, ...] = ()
    slim: SlimPlan | None = None
    sparse: SparsePlan | None = None

    def storage_of(self, matrix: str) -> Storage:
        """Return the storage of a matrix by the name of its node in the graph, such as `layers.7.mlp.down`."""
        return storage_lookup(self.weights, self.embedding, self.layers)(matrix)

    def is_static(self, matrix: str) -> bool:
        """Say whether a matrix is multiplied with int8 activations whose scale is in the artifact."""
        return self.static is not None and matrix in self.static.matrices

    def storages(self) -> set[Storage]:
        """Return all storages."""
        return {self.weights, self.embedding, *(matrix.storage for matrix in self.layers.values())}

    def sha256(self) -> str:
        """Return the hash of the plan's JSON, in hex."""
        return hashlib.sha256(encode_plan(self)).hexdigest()


def encode_plan(plan: msgspec.Struct) -> bytes:
    """Return a plan as JSON with sorted keys, the same bytes for the same plan."""
    return msgspec.json.format(msgspec.json.encode(plan, order="sorted"), indent=2) + b"\n"


def resolve(
    checkpoint: Checkpoint,
    decoder: Decoder,
    target: Target,
    profile: Profile,
    backend: str | None = None,
    ignored: frozenset[str] = frozenset(),
) -> Plan:
    """Return the plan, checked against the target.

    Args:
        checkpoint: the opened checkpoint.
        decoder: its description.
        target: the device.
        profile: the wishes.
        backend: one of the target's backends; its first one by default.
        ignored: keys of config.json that the user declared harmless.

    Raises:
        PlanError: the target has no such backend, cannot compute with the profile's weights, or has too little memory;
            or the model cannot be pruned so.
        UsageError: the calibration text cannot be read.
    """
    chosen = choose_backend(target, backend)
    limits = get_backend(chosen).LIMITS
    if chosen == "tensorrt" and (target.gpu is None or not {"tensorrt", "tensorrt_rtx"} & set(target.runtimes)):
        raise PlanError(
            f"target '{target.name}' does not say what TensorRT needs to know",
            where=target.name,
            hint="give it a [gpu] with its sm, and [runtimes] with tensorrt or tensorrt_rtx",
        )
    slimmed = None
    if profile.slim is not None:
        slimmed, decoder = resolve_slim(checkpoint, decoder, profile.slim, ignored)
    _check_weights(target, profile, limits, chosen)
    check_activations(target, profile, limits, chosen)
    layers = _layers(decoder, profile)
    _check_blocks(decoder, _storage_of(decoder, profile))
    if "quarot" in profile.transforms:
        check_rotation(decoder)

    def need(wanted: Profile) -> Estimate:
        return estimate(
            decoder,
            wanted.weights.storage(),
            _storage_of(decoder, wanted),
            limits=limits,
            kv_cache=wanted.runtime.kv_cache,
            context=min(wanted.context_length, decoder.context_length),
            static=static_matrices(decoder, _storage_of(decoder, wanted), wanted),
        )

    def fits(wanted: Profile) -> bool:
        with suppress(PlanError):
            _check_weights(target, wanted, limits, chosen)
            check_activations(target, wanted, limits, chosen)
            return need(wanted).total_bytes <= (usable_bytes(target) or 0)
        return False

    _check_memory(target, profile, need(profile), fits)
    count = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    return Plan(
        edgec=__version__,
        source=Source(checkpoint.format, decoder.family, count, checkpoint.fingerprint()),
        target=target.name,
        backend=chosen,
        profile=profile.name,
        weights=profile.weights.storage(),
        embedding=_embedding(decoder, profile),
        accuracy_level=profile.accuracy_level,
        kv_cache=profile.runtime.kv_cache,
        context_length=min(profile.context_length, decoder.context_length),
        verify=profile.verify,
        estimate=need(profile),
        calibration=_calibration(profile, decoder, limits),
        layers=layers,
        static=_static(decoder, profile),
        transforms=profile.transforms,
        slim=slimmed,
        sparse=None if profile.sparse is None else resolve_sparse(decoder, profile.sparse, f"profile '{profile.name}'"),
    )


def choose_backend(target: Target, wanted: str | None) -> str:
    """Return the backend that is wanted, or the target's first one.

    Raises:
        PlanError: the target has no such backend.
    """
    chosen = wanted or target.backends[0]
    if chosen not in target.backends:
        raise PlanError(
            f"target '{target.name}' has no backend '{chosen}'", hint=f"it has: {', '.join(target.backends)}"
        )
    return chosen


def _layers(decoder: Decoder, profile: Profile) -> dict[str, MatrixStorage]:
    return resolve_layers(decoder, profile.weights.storage(), profile.layers, f"profile '{profile.name}'")


def _static(decoder: Decoder, profile: Profile) -> StaticActivations | None:
    matrices = static_matrices(decoder, _storage_of(decoder, profile), profile)
    if not matrices:
        return None
    assert profile.activations is not None
    return StaticActivations(matrices, profile.activations.range)


def _storage_of(decoder: Decoder, profile: Profile) -> StorageOf:
    return storage_lookup(profile.weights.storage(), _embedding(decoder, profile), _layers(decoder, profile))


def _embedding(decoder: Decoder, profile: Profile) -> Storage:
    """Return the storage of the token embedding and the output matrix, with the algorithm that will round them.

    Rows that are looked up have no inputs that could make up for each other, and logits are not tuned to.
    """
    storage = (profile.embedding or profile.weights).storage()
    if not isinstance(storage, Scheme):
        return storage
    instead = {"gptq": "mse", "autoround": "mse"} if decoder.tied else {"autoround": "gptq"}
    return msgspec.structs.replace(storage, algorithm=instead.get(storage.algorithm, storage.algorithm))


def _calibration(profile: Profile, decoder: Decoder, limits: Limits) -> CalibrationText | None:
    wanted = profile.calibration
    if wanted is None or not profile.reads_text(static_cache=limits.static_cache):
        return None
    window = min(wanted.window, profile.context_length, decoder.context_length)
    return CalibrationText(hash_files(wanted.texts), wanted.tokens, window, wanted.seed, wanted.device, wanted.steps)


def _check_weights(target: Target, profile: Profile, limits: Limits, backend: str) -> None:
    for weights in (profile.weights, profile.embedding or profile.weights, *profile.layers):
        if weights.dtype not in target.weight_dtypes:
            raise PlanError(
                f"target '{target.name}' has no kernels for {weights.dtype} weights, which profile "
                f"'{profile.name}' asks for",
                hint=f"it takes: {', '.join(sorted(limits.weights & set(target.weight_dtypes)))}",
            )
        if weights.dtype not in limits.weights:
            raise PlanError(
                f"the {backend} backend takes no {weights.dtype} weights, which profile '{profile.name}' asks for",
                hint=f"it takes: {', '.join(sorted(limits.weights & set(target.weight_dtypes)))}",
            )
        if not weights.symmetric and not limits.zero_points:
            raise PlanError(
                f"the {backend} backend takes symmetric integers only, profile '{profile.name}' has zero points",
                hint="choose a profile with `symmetric = true`",
            )
    kinds = {weights.dtype for weights in (profile.weights, *profile.layers)}
    if limits.fp32_activations and "fp32" in kinds and len(kinds) > 1:
        raise PlanError(
            f"the {backend} backend computes all layers in float32 or none, profile '{profile.name}' has fp32 in some",
            hint="store those as fp16, or all as fp32",
        )
    if profile.accuracy_level not in limits.accuracy_levels:
        raise PlanError(
            f"the {backend} backend has no accuracy level {profile.accuracy_level}, which profile "
            f"'{profile.name}' asks for",
            hint=f"it has: {', '.join(map(str, sorted(limits.accuracy_levels)))}",
        )
    if profile.runtime.kv_cache not in limits.cache_bytes:
        raise PlanError(
            f"the {backend} backend has no {profile.runtime.kv_cache} key-value cache, which profile "
            f"'{profile.name}' asks for",
            hint=f"it has: {', '.join(limits.cache_bytes)}",
        )


def _check_blocks(decoder: Decoder, storage_of: StorageOf) -> None:
    for operation in operations(decoder, storage_of):
        if isinstance(operation.storage, Scheme) and operation.storage.dtype == "nvfp4":
            _, cols = operation.shape
            if cols % NVFP4_GROUP:
                raise PlanError(
                    f"blocks of {NVFP4_GROUP} do not divide the {cols} inputs of a weight, as nvfp4 asks",
                    where=f"{operation.block}, {operation.name}",
                    hint="choose a profile with fp8 or int4 weights",
                )


def _check_memory(target: Target, profile: Profile, need: Estimate, fits: Callable[[Profile], bool]) -> None:
    usable = usable_bytes(target)
    if usable is None or need.total_bytes <= usable:
        return
    fitting = [other.name for other in list_profiles() if fits(other)]
    raise PlanError(
        f"profile '{profile.name}' needs {_mib(need.total_bytes)} MiB: {_mib(need.weight_bytes)} for weights, "
        f"{_mib(need.kv_cache_bytes)} for the KV cache, {_mib(need.activation_bytes)} for activations and "
        f"{_mib(need.runtime_bytes)} for the runtime; target '{target.name}' can use {int(usable / _MIB):,} MiB",
        hint=f"profiles that fit: {', '.join(fitting)}"
        if fitting
        else "no shipped profile fits: write one with a smaller context_length, or choose a smaller model",
    )


def _mib(size_bytes: int) -> str:
    """Return MiB rounded up: what does not fit then never prints as what can be used, which is rounded down."""
    return f"{math.ceil(size_bytes / _MIB):,}"


_MIB = 2**20
