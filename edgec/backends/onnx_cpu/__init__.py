"""ONNX Runtime on CPUs: the artifact is a directory that onnxruntime and onnxruntime-genai load as it stands."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.backends.backend import Footprint, Limits, NetworkLimits
from edgec.backends.onnx_cpu.kernels import block_size
from edgec.quantize.operators import KEEPING
from edgec.spec.operation import Kernel, Operation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgec.backends.backend import Integers8, Job, Mode, NetworkJob
    from edgec.backends.network import NetworkMode
    from edgec.backends.onnx_cpu.network_session import OnnxCpuNetwork
    from edgec.backends.onnx_cpu.session import OnnxCpuSession
    from edgec.backends.onnx_cpu.settings import Settings
    from edgec.graph.weights import Codes
    from edgec.spec.plan import Plan
    from edgec.spec.target import Target

MARKER = "genai_config.json"
EXTRA = None
PACKAGES: tuple[str, ...] = ()
RUNTIME = "onnxruntime"
# Measured with ONNX Runtime 1.31. Floats are widened to float32 when they are loaded, one weight at a time; behind the
# cast of a float16 table its transpose is folded into a second table. MatMulNBits packs its codes anew, with scales and
# sums of blocks beside the scales that are read. GroupQueryAttention writes no scores.
LIMITS = Limits(
    block_size=block_size,
    scale_bytes=4,
    activation_bytes=4,
    cache_bytes={"float": 4, "int8": 1},
    static_cache=True,
    soft_caps=True,
    sparse_files=True,
    footprint=Footprint(
        runtime_bytes=112 << 20,
        float_bytes=4,
        more_scales=2,
        more_tied_fp16=1,
        staged_weights=1,
        mlp_buffers=3,
        attention_buffers=3,
    ),
)

NETWORKS = NetworkLimits(
    follow=frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", *KEEPING}),
    round_convolutions=True,
    domains=frozenset({"", "ai.onnx.ml", "com.microsoft"}),
)

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def require_compiler(target: "Target") -> None:
    """Return: the `build` extra has all that it takes; see `edgec.backends.backend.Backend`."""
    del target


def compile_decoder(job: "Job", folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
    """Write the artifact of a decoder; see `edgec.backends.backend.Backend`."""
    from edgec.backends.onnx_cpu.compile import compile_decoder

    return compile_decoder(job, folder, tick)


def open_session(
    artifact: Path, mode: "Mode", *, threads: int | None = None, max_length: int | None = None
) -> "OnnxCpuSession":
    """Load an artifact; see `edgec.backends.backend.Backend`."""
    from edgec.backends.onnx_cpu.session import OnnxCpuSession

    return OnnxCpuSession(artifact, mode, threads=threads, max_length=max_length)


def compile_network(job: "NetworkJob", folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    from edgec.backends.onnx_cpu.network import compile_network

    return compile_network(job, folder)


def open_network(artifact: Path, mode: "NetworkMode", *, threads: int | None = None) -> "OnnxCpuNetwork":
    """Load an artifact of a network; see `edgec.backends.backend.Backend`."""
    from edgec.backends.onnx_cpu.network_session import OnnxCpuNetwork

    return OnnxCpuNetwork(artifact, mode, threads=threads)


def read_integers(artifact: Path) -> "Integers8":
    """Return the integers in the files of an artifact of a network."""
    from edgec.backends.onnx_cpu.network import read_integers

    return read_integers(artifact)


def kernel_of(operation: Operation, plan: "Plan", target: "Target") -> Kernel:
    """Return what will run an operation; see `edgec.backends.backend.Backend`."""
    from edgec.backends.onnx_cpu.kernels import kernel_of

    return kernel_of(operation, plan, target)


def not_run(artifact: Path) -> None:
    """Return None: this machine runs its artifacts."""
    del artifact


def read_settings(artifact: Path) -> "Settings":
    """Return what an artifact says about itself."""
    from edgec.backends.onnx_cpu.settings import read_settings

    return read_settings(artifact)


def weight_bytes_per_token(artifact: Path) -> int:
    """Return the bytes of weights that the artifact reads to decode one token."""
    from edgec.backends.onnx_cpu.traffic import weight_bytes_per_token

    return weight_bytes_per_token(artifact / read_settings(artifact).model.decoder.filename)


def read_codes(artifact: Path) -> "Iterator[tuple[str, Codes]]":
    """Yield the integers of an artifact."""
    from edgec.backends.onnx_cpu.codes import read_codes

    return read_codes(artifact)


def read_scales(artifact: Path) -> "Mapping[str, tuple[float, ...]]":
    """Return the scales of activations and of the cache that an artifact holds."""
    from edgec.backends.onnx_cpu.codes import read_scales

    return read_scales(artifact)


def trace(artifact: Path, input_ids: "NDArray[np.int64]", mode: "Mode") -> "Iterator[tuple[str, NDArray[np.float32]]]":
    """Yield the hidden states and the logits of one prompt; see `edgec.backends.backend.Backend`."""
    from edgec.backends.onnx_cpu.states import trace

    return trace(artifact, input_ids, mode)
