"""OpenVINO: the artifact is a directory that openvino and openvino_genai load as it stands."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.backends.backend import Footprint, Limits, NetworkLimits
from edgec.backends.openvino.kernels import block_size
from edgec.errors import require
from edgec.quantize.operators import KEEPING
from edgec.spec.operation import Kernel, Operation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgec.backends.backend import Integers8, Job, Mode, NetworkJob
    from edgec.backends.network import NetworkMode
    from edgec.backends.openvino.network_session import OpenVinoNetwork
    from edgec.backends.openvino.session import OpenVinoSession
    from edgec.backends.settings import Settings
    from edgec.graph.weights import Codes
    from edgec.spec.plan import Plan
    from edgec.spec.target import Target

MARKER = "openvino_model.xml"
EXTRA = "openvino"
PACKAGES = ("openvino", "openvino-tokenizers")
RUNTIME = "openvino.opset13"
# Measured with OpenVINO 2026.4, computing in float32; a CPU that computes in bfloat16 needs less. Weights are there
# twice: mapped from the file (float16 ones widened), and packed for the kernels. The cache grows by doubling, and what
# its old buffers took is not always used again. After a prompt's first piece, attention writes the scores of all heads.
LIMITS = Limits(
    block_size=block_size,
    scale_bytes=2,
    activation_bytes=4,
    cache_bytes={"float": 2, "int8": 1.125},
    accuracy_levels=frozenset({0, 1, 4}),
    footprint=Footprint(
        runtime_bytes=192 << 20,
        float_bytes=4,
        weight_copies=2,
        cache_copies=2,
        mlp_buffers=7,
        attention_buffers=1,
        mask_bytes=16,
        scores=1,
        unfused_scores=5,
    ),
)


NETWORKS = NetworkLimits(follow=frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", *KEEPING}))


def require_compiler(target: "Target") -> None:
    """Make sure that OpenVINO is installed, whatever the target; see `edgec.backends.backend.Backend`."""
    del target
    require("openvino", EXTRA)
    require("openvino_tokenizers", EXTRA)


def compile_decoder(job: "Job", folder: Path, tick: Callable[[str], object]) -> tuple[str, ...]:
    """Write the artifact of a decoder; see `edgec.backends.backend.Backend`."""
    require_compiler(job.target)
    from edgec.backends.openvino.compile import compile_decoder

    return compile_decoder(job, folder, tick)


def open_session(
    artifact: Path, mode: "Mode", *, threads: int | None = None, max_length: int | None = None
) -> "OpenVinoSession":
    """Load an artifact; see `edgec.backends.backend.Backend`."""
    require("openvino", EXTRA)
    from edgec.backends.openvino.session import OpenVinoSession

    return OpenVinoSession(artifact, mode, threads=threads, max_length=max_length)


def compile_network(job: "NetworkJob", folder: Path) -> tuple[str, ...]:
    """Write the artifact of a network; see `edgec.backends.backend.Backend`."""
    require_compiler(job.target)
    from edgec.backends.openvino.network import compile_network

    return compile_network(job, folder)


def open_network(artifact: Path, mode: "NetworkMode", *, threads: int | None = None) -> "OpenVinoNetwork":
    """Load an artifact of a network; see `edgec.backends.backend.Backend`."""
    require("openvino", EXTRA)
    from edgec.backends.openvino.network_session import OpenVinoNetwork

    return OpenVinoNetwork(artifact, mode, threads=threads)


def read_integers(artifact: Path) -> "Integers8":
    """Return the integers in the files of an artifact of a network."""
    require("openvino", EXTRA)
    require("onnx_ir", "build")
    from edgec.backends.openvino.network import read_integers

    return read_integers(artifact)


def kernel_of(operation: Operation, plan: "Plan", target: "Target") -> Kernel:
    """Return what will run an operation; see `edgec.backends.backend.Backend`."""
    from edgec.backends.openvino.kernels import kernel_of

    return kernel_of(operation, plan, target)


def not_run(artifact: Path) -> None:
    """Return None: this machine runs its artifacts."""
    del artifact


def read_settings(artifact: Path) -> "Settings":
    """Return what an artifact says about itself."""
    from edgec.backends.settings import read_settings

    return read_settings(artifact)


def weight_bytes_per_token(artifact: Path) -> int:
    """Return the bytes of weights that the artifact reads to decode one token."""
    require("openvino", EXTRA)
    from edgec.backends.openvino.codes import weight_bytes_per_token

    return weight_bytes_per_token(artifact)


def read_codes(artifact: Path) -> "Iterator[tuple[str, Codes]]":
    """Yield the integers of an artifact."""
    require("openvino", EXTRA)
    require("onnx_ir", "build")
    from edgec.backends.openvino.codes import read_codes

    return read_codes(artifact)


def read_scales(artifact: Path) -> "Mapping[str, tuple[float, ...]]":
    """Return the scales of activations and of the cache that an artifact holds."""
    require("openvino", EXTRA)
    from edgec.backends.openvino.codes import read_scales

    return read_scales(artifact)


def trace(artifact: Path, input_ids: "NDArray[np.int64]", mode: "Mode") -> "Iterator[tuple[str, NDArray[np.float32]]]":
    """Yield the hidden states and the logits of one prompt; see `edgec.backends.backend.Backend`."""
    require("openvino", EXTRA)
    from edgec.backends.openvino.states import trace

    return trace(artifact, input_ids, mode)
