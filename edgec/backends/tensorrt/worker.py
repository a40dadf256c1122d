"""Compile an engine with TensorRT-RTX in a process of its own: the compiler may crash, and keeps its memory.

Addresses are not randomised there: they leak into engines. That makes engines equal from build to build but for the
numbers that TensorRT-RTX 1.7.1 gives to symbolic dimensions, a few hundred bytes.
"""

import ctypes
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from edgec.backends.tensorrt.recipe import Profile

_ADDR_NO_RANDOMIZE = 0x0040000
_CONSTANT = re.compile(r"Name: ([^,]+), Dimensions: \[([^\]]*)\][^}]*?Datatype: (\w+)")
_LOG_LINES = 8


class Order(msgspec.Struct, frozen=True):
    """What to compile: an ONNX file, for which GPU, and where the engine goes."""

    model: str
    out: str
    sm: int
    profiles: tuple[Profile, ...]


class Made(msgspec.Struct, frozen=True, tag="made"):
    """An engine was written; `weights` counts the numbers in its constants by data type."""

    compiler: str
    weights: dict[str, int]


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """No engine; the parser names a node, the builder often none. `log` holds the last errors."""

    compiler: str
    stage: str
    node: str = ""
    operator: str = ""
    text: str = ""
    log: tuple[str, ...] = ()


def compile_engine(order: Order) -> Made | Failure:
    """Compile in a new process, and return what came of it."""
    done = subprocess.run(
        [sys.executable, "-m", "edgec.backends.tensorrt.worker"],
        input=msgspec.json.encode(order),
        capture_output=True,
        check=False,
    )
    try:
        return msgspec.json.decode(done.stdout, type=Made | Failure)
    except msgspec.DecodeError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        return Failure(
            "TensorRT-RTX", "compile", text=f"its process died with status {done.returncode}", log=tuple(last)
        )


def main() -> None:
    """Read an order from stdin, and write the result to stdout."""
    libc = ctypes.CDLL(None)
    if not libc.personality(0xFFFFFFFF) & _ADDR_NO_RANDOMIZE:
        libc.personality(_ADDR_NO_RANDOMIZE)
        os.execv(sys.executable, [sys.executable, "-m", "edgec.backends.tensorrt.worker"])  # noqa: S606
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    # The compiler writes to stdout as it likes; only the result belongs there.
    result = os.dup(1)
    os.dup2(2, 1)
    os.write(result, msgspec.json.encode(_compile(order)))


def _compile(order: Order) -> Made | Failure:
    import tensorrt_rtx_bindings as trt

    compiler = f"TensorRT-RTX {trt.__version__}"
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # The parser does not keep the network alive: a temporary one crashes the process.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order.model):
        error = parser.get_error(0)
        names = error.node_name(), error.node_operator(), error.desc()
        return Failure(compiler, "parse", *names, log=tuple(logger.errors))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    capability = getattr(trt.ComputeCapability, f"SM{order.sm}", None)
    if capability is None or not config.set_compute_capability(capability, 0):
        return Failure(compiler, "configure", text=f"it does not compile for SM{order.sm}", log=tuple(logger.errors))
    for wanted in order.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in wanted.shapes.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            text = f"it refuses the optimization profile '{wanted.name}'"
            return Failure(compiler, "configure", text=text, log=tuple(logger.errors))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return Failure(compiler, "build", log=tuple(logger.errors))
    Path(order.out).write_bytes(engine)
    return Made(compiler, _weights(logger.layers))


def _weights(layers: str) -> dict[str, int]:
    """Return how many numbers the engine's constants hold in each data type, by its log; {} where it says nothing."""
    found: dict[str, tuple[str, int]] = {}
    for part in layers.split("Constants: [")[1:]:
        for name, dims, dtype in _CONSTANT.findall(part.partition("], Outputs:")[0]):
            found[name] = dtype, math.prod(int(size) for size in dims.split(",") if size.strip())
    elements: Counter[str] = Counter()
    for dtype, count in found.values():
        elements[dtype] += count
    return dict(sorted(elements.items()))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what the compiler says, instead of printing it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors = [*self.errors, message.strip()][-_LOG_LINES:]
            elif message.startswith("Layers:"):
                self.layers = message

    return Logger()


if __name__ == "__main__":
    main()
