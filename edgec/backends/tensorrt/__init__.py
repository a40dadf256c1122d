"""TensorRT: engines compiled ahead of time for RTX GPUs, and built on the device for Jetson."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.backends.backend import Footprint, Limits, NetworkLimits
from edgec.backends.tensorrt.kernels import block_size
from edgec.errors import require
from edgec.quantize.operators import KEEPING
from edgec.spec.operation import Kernel, Operation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgec.backends.backend import Integers8, Job, Mode, NetworkJob
    from edgec.backends.network import NetworkMode
    from edgec.backends.session import Session
    from edgec.backends.settings import Settings
    from edgec.backends.tensorrt.cuda import Gpu
    from edgec.backends.tensorrt.engine import Engine
    from edgec.backends.tensorrt.network_session import TensorRtNetwork
    from edgec.graph.weights import Codes
    from edgec.spec.plan import Plan
    from edgec.spec.target import Target

MARKER = "tensorrt.json"
EXTRA = "tensorrt"
PACKAGES = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
RUNTIME = "tensorrt_rtx_bindings"
# Derived, not measured: past and present are inputs and outputs of the engine, so both are there. Activations, mask and
# scores are what TensorRT-RTX 1.7 says of the engines that it builds ("Total Activation Memory" of SmolLM2-135M: 18 MB
# in fp16 with 2048 tokens, 33 MB with 8192, 106 MB in fp32 with 2048). Of `runtime_bytes`, 51 MB are kernels, in every
# engine; the rest is a guess of what a CUDA context and TensorRT's libraries take. A Jetson, with one memory for all,
# has the engine's file there once more while it loads, and needs more than this to build it.
LIMITS = Limits(
    block_size=block_size,
    scale_bytes=2,
    activation_bytes=2,
    cache_bytes={"float": 2, "int8": 1},
    static_cache=True,
    fp32_activations=True,
    footprint=Footprint(
        runtime_bytes=384 << 20,
        float_bytes=2,
        cache_copies=2,
        mlp_buffers=3,
        attention_buffers=3,
        mask_bytes=5,
        unfused_scores=2,
    ),
    weights=frozenset({"fp32", "fp16", "fp8", "int8", "int4", "nvfp4"}),
    zero_points=False,
    activations=frozenset({"float", "static"}),
)

# Read from the layers of engines: between integers TensorRT-RTX 1.7 runs all of these in kernels that read and write
# int8, but for AveragePool, which it widens, and which Jetson's TensorRT documents as one of those that it quantizes.
NETWORKS = NetworkLimits(
    follow=frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", *KEEPING}),
    grids="signed",
    activations=frozenset({"static", "float"}),
)


def require_compiler(target: "Target") -> None:
    """Make sure that what compiles for `target` is installed; see `edgec.backends.backend.Backend`."""
    from edgec.backends.tensorrt.kernels import AHEAD_OF_TIME

    if AHEAD_OF_TIME in target.runtimes:
        require("tensorrt_rtx_bindings", EXTRA, load=False)  # the compiler's own process loads it


def compile_decoder(job: "Job", folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
    """Write the artifact of a decoder; see `edgec.backends.backend.Backend`."""
    require_compiler(job.target)
    from edgec.backends.tensorrt.compile import compile_decoder

    return compile_decoder(job, folder, tick)


def open_session(
    artifact: Path, mode: "Mode", *, threads: int | None = None, max_length: int | None = None
) -> "Session":
    """Load the engine where its GPU is here, else the graph that it is compiled from, which also is the exact mode.

    See `edgec.backends.backend.Backend`.
    """
    found = _runnable(artifact) if mode != "exact" else None
    if found is not None:
        from edgec.backends.tensorrt.engine_session import EngineSession

        return EngineSession(artifact, *found, mode, max_length=max_length)
    require("onnx_ir", "build")
    from edgec.backends.tensorrt.session import GraphSession

    return GraphSession(artifact, mode, threads=threads, max_length=max_length)


def compile_network(job: "NetworkJob", folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    require_compiler(job.target)
    from edgec.backends.tensorrt.network import compile_network

    return compile_network(job, folder)


def open_network(artifact: Path, mode: "NetworkMode", *, threads: int | None = None) -> "TensorRtNetwork":
    """Load the graph that the engine of a network is compiled from; see `edgec.backends.backend.Backend`."""
    require("onnx_ir", "build")
    from edgec.backends.tensorrt.network_session import TensorRtNetwork

    return TensorRtNetwork(artifact, mode, threads=threads)


def read_integers(artifact: Path) -> "Integers8":
    """Return the integers in the files of an artifact of a network."""
    require("onnx_ir", "build")
    from edgec.backends.tensorrt.network import read_integers

    return read_integers(artifact)


def _runnable(artifact: Path) -> "tuple[Engine, Gpu] | None":
    """Return the artifact's engine and the GPU here that it is for, if both are there."""
    from edgec.backends.tensorrt.cuda import gpus
    from edgec.backends.tensorrt.engine import read_engines

    here = gpus()
    engine = read_engines(artifact).engine if here else None
    if engine is None or engine.file is None:  # a proxy is not shipped
        return None
    return next(((engine, gpu) for gpu in here if gpu.sm == engine.sm), None)


def kernel_of(operation: Operation, plan: "Plan", target: "Target") -> Kernel:
    """Return what will run an operation; see `edgec.backends.backend.Backend`."""
    from edgec.backends.tensorrt.kernels import kernel_of

    return kernel_of(operation, plan, target)


def not_run(artifact: Path) -> str | None:
    """Return what was compiled and that its graph is run instead; None where the GPU of a decoder's engine is here."""
    from edgec.backends.network import NETWORK_FILE
    from edgec.backends.tensorrt.engine import describe, read_engines

    runs = not (artifact / NETWORK_FILE).is_file() and _runnable(artifact) is not None
    return None if runs else describe(read_engines(artifact))


def read_settings(artifact: Path) -> "Settings":
    """Return what an artifact says about itself."""
    from edgec.backends.settings import read_settings

    return read_settings(artifact)


def weight_bytes_per_token(artifact: Path) -> int:
    """Return the bytes of weights that the graph reads to decode one token."""
    from edgec.backends.onnx_cpu.traffic import weight_bytes_per_token
    from edgec.backends.tensorrt.recipe import MODEL_FILE

    return weight_bytes_per_token(artifact / MODEL_FILE)


def trace(artifact: Path, input_ids: "NDArray[np.int64]", mode: "Mode") -> "Iterator[tuple[str, NDArray[np.float32]]]":
    """Yield the hidden states and the logits of one prompt; see `edgec.backends.backend.Backend`."""
    require("onnx_ir", "build")
    from edgec.backends.tensorrt.states import trace

    return trace(artifact, input_ids, mode)


def read_codes(artifact: Path) -> "Iterator[tuple[str, Codes]]":
    """Yield the integers of an artifact."""
    require("onnx_ir", "build")
    from edgec.backends.tensorrt.codes import read_codes

    return read_codes(artifact)


def read_scales(artifact: Path) -> "Mapping[str, tuple[float, ...]]":
    """Return the scales of activations and of the cache that an artifact holds."""
    require("onnx_ir", "build")
    from edgec.backends.tensorrt.codes import read_scales

    return read_scales(artifact)
