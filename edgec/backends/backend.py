"""What every backend offers; a backend is a folder here, and its name in plans is the folder's."""

import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

import edgec.backends
from edgec.backends.network import NETWORK_FILE, NetworkMode, NetworkSession, read_network_settings
from edgec.backends.session import Session
from edgec.errors import BundleError
from edgec.spec.operation import Kernel, Operation

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.frontends.architecture import Decoder
    from edgec.frontends.network import Network
    from edgec.graph.weights import Codes
    from edgec.quantize.scheme import Scheme
    from edgec.spec.network_plan import Grids, NetworkPlan
    from edgec.spec.plan import Plan
    from edgec.spec.target import Target

Mode = Literal["generate", "evaluate", "exact"]
"""What a session is for: text as it ships (the logits of the last token are enough), quality as it ships (every token's
logits), or the proof (every token's logits, float32 activations and cache)."""

_HIDDEN_STATE = re.compile(r"embedding(\.(multiplier|sum))?|layers\.\d+\.(attention|mlp)_residual")


@dataclass(frozen=True)
class Job:
    """What a decoder artifact is made from.

    Args:
        model: the canonical quantized graph.
        config: the checkpoint's config.json.
        tokenizer_files: name -> content.
    """

    model: "ir.Model"
    decoder: "Decoder"
    plan: "Plan"
    target: "Target"
    config: Mapping[str, Any]
    tokenizer_files: Mapping[str, bytes]


@dataclass(frozen=True)
class Footprint:
    """What a runtime keeps in memory for what an artifact stores; `bench/memory/resident.py` checks it.

    Args:
        runtime_bytes: what it takes for any model: its libraries, its kernels, the interpreter around it.
        float_bytes: of one number of a float weight, which may be wider than the stored one.
        weight_copies: of every weight, such as the one that is read and the one that kernels want; a token embedding
            that is only looked up is there once.
        more_scales: further copies of the scales of integers.
        more_tied_fp16: further copies of a token embedding that is the output matrix too and is stored as float16.
        staged_weights: copies of the largest weight that exist only while it is loaded.
        cache_copies: of the key-value cache.
        mlp_buffers: activations as wide as a layer's gate and up that are in memory at once.
        attention_buffers: those as wide as the residual stream, queries, keys and values.
        mask_bytes: for each pair of a new token and a token in the cache.
        scores: copies of all heads' attention scores (new tokens x tokens in the cache).
        unfused_scores: the same where attention is not one kernel.
    """

    runtime_bytes: int
    float_bytes: int
    mlp_buffers: int
    attention_buffers: int
    weight_copies: int = 1
    more_scales: int = 0
    more_tied_fp16: int = 0
    staged_weights: int = 0
    cache_copies: int = 1
    mask_bytes: int = 0
    scores: int = 0
    unfused_scores: int = 0


@dataclass(frozen=True)
class Limits:
    """What a backend stores, what it cannot, and what its runtime takes.

    Args:
        block_size: gives the blocks in which it writes the integers of a scheme for rows of so many inputs, each with
            a scale of its own; None for one scale per output. Rows that are no whole number of blocks are padded.
        scale_bytes: of one scale.
        activation_bytes: of one number between layers.
        cache_bytes: kind of key-value cache -> bytes of one number in it, scales included.
        static_cache: whether an int8 cache takes scales from calibration; else its runtime finds them.
        footprint: of its runtime.
        fp32_activations: fp32 weights make activations and cache float32, and attention several kernels.
        soft_caps: whether attention with a soft cap on its scores is one kernel.
        weights: how it takes weights; a target may have kernels for more, in another backend.
        zero_points: whether it takes asymmetric integers.
        accuracy_levels: of `Runtime.accuracy_level`, those that it can follow.
        activations: what it can multiply integer weights with: "float", "dynamic" or "static" int8.
        sparse_files: whether its files leave zeros out where that is smaller.
    """

    block_size: Callable[["Scheme", int], int | None]
    scale_bytes: int
    activation_bytes: int
    cache_bytes: Mapping[str, float]
    footprint: Footprint
    static_cache: bool = False
    fp32_activations: bool = False
    soft_caps: bool = False
    weights: frozenset[str] = frozenset({"fp32", "fp16", "int8", "int4"})
    zero_points: bool = True
    accuracy_levels: frozenset[int] = frozenset({0, 1, 2, 3, 4})
    activations: frozenset[str] = frozenset({"float", "dynamic", "static"})
    sparse_files: bool = False


@dataclass(frozen=True)
class NetworkJob:
    """What an artifact of a network is made from.

    Args:
        model: the canonical graph, quantized; not changed.
        network: what it was made from.
    """

    model: "ir.Model"
    network: "Network"
    plan: "NetworkPlan"
    target: "Target"


@dataclass(frozen=True)
class NetworkLimits:
    """How a backend takes networks.

    Args:
        follow: operators that it runs on integers, besides convolutions and products, for 8-bit inputs and outputs.
        grids: the integers that it takes for activations: "shifted" is uint8 with a zero point, "signed" int8 around 0.
        round_convolutions: whether its int8 convolutions give integers only.
        weights: how it takes weights.
        activations: what it can multiply int8 weights with.
        domains: of the operators that it has.
    """

    follow: frozenset[str]
    grids: "Grids" = "shifted"
    round_convolutions: bool = False
    weights: frozenset[str] = frozenset({"fp32", "fp16", "int8"})
    activations: frozenset[str] = frozenset({"static", "dynamic", "float"})
    domains: frozenset[str] = frozenset({""})


@dataclass(frozen=True)
class Integers8:
    """The int8 weights and the grids of activations that an artifact of a network holds.

    Args:
        weights: name -> (codes (outputs, everything else) int8, scales (outputs,) float32).
        grids: rounded value -> (scale, zero point as if integers were unsigned 0..255).
    """

    weights: "Mapping[str, tuple[NDArray[np.int8], NDArray[np.float32]]]"
    grids: Mapping[str, tuple[float, int]]


class Settings(Protocol):
    """What an artifact says about itself."""

    @property
    def context_length(self) -> int:
        """The most tokens that it takes."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        ...


class Backend(Protocol):
    """The functions of a backend's package.

    Attributes:
        MARKER: the file by which its artifacts are known.
        EXTRA: the extra that installs what it needs to compile, None for the core.
        PACKAGES: packages that decide the bytes of its artifacts.
        RUNTIME: module that runs them.
        LIMITS: what it stores, and what it cannot.
        NETWORKS: the same for networks.
    """

    MARKER: str
    EXTRA: str | None
    PACKAGES: tuple[str, ...]
    RUNTIME: str
    LIMITS: Limits
    NETWORKS: NetworkLimits

    def require_compiler(self, target: "Target") -> None:
        """Make sure, before any work, that the packages are installed which compile for `target`.

        Raises:
            MissingRuntimeError: one is not.
        """
        ...

    def compile_decoder(self, job: Job, folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
        """Write the artifact into the empty directory `folder`; `tick` is called for each weight that is written.

        Returns:
            Remarks: what the artifact lacks, and why.

        Raises:
            PlanError: the vendor's compiler refuses the graph.
        """
        ...

    def open_session(
        self, artifact: Path, mode: Mode, *, threads: int | None = None, max_length: int | None = None
    ) -> Session:
        """Load an artifact; `threads` None leaves their number to the runtime.

        Raises:
            BundleError: it is incomplete or damaged.
            MissingRuntimeError: its runtime is not installed here.
            UsageError: `max_length` is more than its context length.
        """
        ...

    def compile_network(self, job: NetworkJob, folder: Path) -> tuple[str, ...]:
        """Write the artifact of a network into the empty directory `folder`.

        Returns:
            Remarks: what the artifact lacks, and why.

        Raises:
            PlanError: the vendor's compiler refuses the graph.
        """
        ...

    def open_network(self, artifact: Path, mode: NetworkMode, *, threads: int | None = None) -> NetworkSession:
        """Load an artifact of a network; `threads` None leaves their number to the runtime.

        Raises:
            BundleError: it is incomplete or damaged.
            MissingRuntimeError: its runtime is not installed here.
        """
        ...

    def read_integers(self, artifact: Path) -> Integers8:
        """Return the integers in the files of an artifact of a network."""
        ...

    def kernel_of(self, operation: Operation, plan: "Plan", target: "Target") -> Kernel:
        """Return what will run an operation of a plan on the target; needs no package of the vendor."""
        ...

    def not_run(self, artifact: Path) -> str | None:
        """Return why this machine cannot run the artifact, and what sessions run instead; None where it can."""
        ...

    def read_settings(self, artifact: Path) -> Settings:
        """Return what an artifact says about itself.

        Raises:
            BundleError: it says nothing, or nonsense.
        """
        ...

    def weight_bytes_per_token(self, artifact: Path) -> int:
        """Return the bytes of weights that the artifact reads to decode one token."""
        ...

    def read_codes(self, artifact: Path) -> "Iterator[tuple[str, Codes]]":
        """Yield (name of the canonical weight, integers) from an artifact's own files, one in memory at a time."""
        ...

    def read_scales(self, artifact: Path) -> Mapping[str, tuple[float, ...]]:
        """Return the scales of activations and of the cache that an artifact's own files hold, by canonical name."""
        ...

    def trace(
        self, artifact: Path, input_ids: NDArray[np.int64], mode: Mode
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Run tokens (1, n); yield the hidden states (see `is_hidden_state`) in graph order, and `logits` last.

        The artifact's files are not changed. States are (1, n, hidden), logits (1, n, vocab).

        Raises:
            BundleError: it is incomplete or damaged.
            MissingRuntimeError: its runtime is not installed here.
        """
        ...


def is_hidden_state(name: str) -> bool:
    """Say whether a value is what blocks of a decoder hand on; the canonical graph's names survive every lowering."""
    return _HIDDEN_STATE.fullmatch(name) is not None


def backend_names() -> list[str]:
    """Return the names of all backends."""
    return sorted(module.name for module in pkgutil.iter_modules(edgec.backends.__path__) if module.ispkg)


def get_backend(name: str) -> Backend:
    """Return a backend by its name, which is in `backend_names`."""
    return cast("Backend", import_module(f"edgec.backends.{name}"))


def import_runtime(backend: Backend) -> None:
    """Import what runs a backend's artifacts, which is no part of loading one; loading tells if it is not there."""
    with suppress(ImportError, OSError):
        import_module(backend.RUNTIME)


def backend_of(artifact: Path) -> Backend:
    """Return the backend that an artifact directory is for.

    Raises:
        BundleError: it is no artifact.
    """
    if (artifact / NETWORK_FILE).is_file():
        return get_backend(read_network_settings(artifact).backend)
    for name in backend_names():
        if (artifact / get_backend(name).MARKER).is_file():
            return get_backend(name)
    markers = ", ".join(get_backend(name).MARKER for name in backend_names())
    raise BundleError(
        f"'{artifact}' is no artifact: it has none of {markers}", where=str(artifact), hint="`edgec build` makes one"
    )
