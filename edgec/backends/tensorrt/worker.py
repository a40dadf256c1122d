"""Compile an engine with TensorRT-RTX in a process of its own: the compiler may crash, and keeps its memory.

Addresses are not randomised there: they leak into engines. That makes engines equal from build to build but for the
numbers that TensorRT-RTX 1.7.1 gives to symbolic dimensions, a few hundred bytes.
"""

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgec.backends.tensorrt.log import make_logger
from edgec.backends.tensorrt.recipe import Profile

Stage = Literal["parse", "configure", "build", "compile", "import", "write", "memory"]
_ADDR_NO_RANDOMIZE = 0x0040000
_PR_SET_PDEATHSIG = 1
_TENSOR = re.compile(r"Name: ([^,]+), Dimensions: \[([^\]]*)\][^}]*?Datatype: (\w+)")
_COPY = re.compile(r"_myl(\d+)_")
_WIDENS = re.compile(r"\[ONNX Layer: ([^\]]+?)(?:\.scales)?\.dequantize\]")
_KIND = re.compile(r"LayerType: (\w+)")
_PRODUCTS = {"gemm", "correlation"}  # matmuls and convolutions
_PACKED = {"Int4", "Int8", "FP8", "FP4E2M1"}


class Order(msgspec.Struct, frozen=True):
    """What to compile: an ONNX file, for which GPU, and where the engine goes."""

    model: str
    out: str
    sm: int
    profiles: tuple[Profile, ...]


class Made(msgspec.Struct, frozen=True, tag="made"):
    """An engine was written; `weights` and `widened` are what `read_layers` returns, the last is `integer_matmuls`."""

    compiler: str
    weights: dict[str, int]
    widened: int
    integer_matmuls: int = 0


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """No engine; the parser names a node, the builder often none. `log` holds the last errors."""

    compiler: str
    stage: Stage
    node: str = ""
    operator: str = ""
    text: str = ""
    log: tuple[str, ...] = ()


def compile_engine(order: Order) -> Made | Failure:
    """Compile in a new process, and return what came of it."""
    done = subprocess.run(  # noqa: S603 - this file, with this interpreter
        _COMMAND, input=msgspec.json.encode(order), capture_output=True, check=False
    )
    try:
        return msgspec.json.decode(done.stdout, type=Made | Failure)
    except msgspec.DecodeError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        died = f"its process died with status {done.returncode}"
        stage: Stage = "memory" if done.returncode == -signal.SIGKILL else "compile"
        return Failure("TensorRT-RTX", stage, text=died, log=tuple(last))


# -P: modules of the directory that the user happens to be in must not be imported.
_COMMAND = [sys.executable, "-P", "-m", "edgec.backends.tensorrt.worker"]
_AGAIN = "again"
_LAST_LINES = 8


def main() -> None:
    """Read an order from stdin, and write the result to stdout."""
    libc = ctypes.CDLL(None)
    if sys.argv[1:] != [_AGAIN] and libc.personality(_ADDR_NO_RANDOMIZE) != -1:  # a sandbox may refuse it
        os.execv(sys.executable, [*_COMMAND, _AGAIN])  # noqa: S606
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    # The compiler writes to stdout as it likes; only the result belongs there.
    result = os.dup(1)
    os.dup2(2, 1)
    try:
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:  # OSError: a library that it loads itself
        made: Made | Failure = Failure("TensorRT-RTX", "import", text=str(error))
    else:
        made = _compile(order, tensorrt_rtx_bindings)
    os.write(result, msgspec.json.encode(made))


def _compile(order: Order, trt: Any) -> Made | Failure:
    compiler = f"TensorRT-RTX {trt.__version__}"
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    # The parser does not keep the network alive: a temporary one crashes the process.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order.model):
        error = parser.get_error(0)
        names = error.node_name(), error.node_operator(), error.desc()
        return Failure(compiler, "parse", *names, log=logger.errors)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    capability = getattr(trt.ComputeCapability, f"SM{order.sm}", None)
    if capability is None or not config.set_compute_capability(capability, 0):
        return Failure(compiler, "configure", text=f"it does not compile for SM{order.sm}", log=logger.errors)
    for wanted in order.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in wanted.shapes.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            text = f"it refuses the optimization profile '{wanted.name}'"
            return Failure(compiler, "configure", text=text, log=logger.errors)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return Failure(compiler, "build", log=logger.errors)
    try:
        Path(order.out).write_bytes(engine)
    except OSError as error:
        return Failure(compiler, "write", text=str(error))
    return Made(compiler, *read_layers(logger.layers), integer_matmuls(logger.layers))


def read_layers(layers: str) -> tuple[dict[str, int], int]:
    """Return what an engine's log says of its layers; ({}, 0) where it says nothing.

    Returns:
        Data type -> how many numbers of the constants have it, and how many weights kernels of their own widen, some
        of them joined with others. Every profile has its own copy of all: the largest counts.
    """
    numbers: dict[str, Counter[str]] = defaultdict(Counter)
    widened: dict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for line in layers.splitlines():
        head, _, rest = line.partition("Constants: [")
        constants, _, outputs = rest.partition("], Outputs: [")
        copy = _COPY.search(head)
        kinds = set()
        for name, dims, dtype in _TENSOR.findall(constants):
            kinds.add(dtype)
            if copy and name not in seen:
                seen.add(name)
                numbers[copy[1]][dtype] += math.prod(int(size) for size in dims.split(",") if size.strip())
        static = all("-1" not in dims and dtype not in _PACKED for _, dims, dtype in _TENSOR.findall(outputs))
        if copy and kinds & _PACKED and "Inputs: []" in head and static:
            widened[copy[1]].update(_WIDENS.findall(outputs))
    types = {dtype for counts in numbers.values() for dtype in counts}
    weights = {dtype: max(counts[dtype] for counts in numbers.values()) for dtype in sorted(types)}
    return weights, max(map(len, widened.values()), default=0)


def integer_matmuls(layers: str) -> int:
    """Return how many kernels of an engine multiply int8 by int8, by its log; joined matmuls count as one."""
    found: Counter[str] = Counter()
    for line in layers.splitlines():
        head, _, rest = line.partition("Constants: [")
        copy = _COPY.search(head)
        inputs, constants = (_TENSOR.findall(part) for part in (head, rest.partition("], Outputs: [")[0]))
        kind = _KIND.search(head)
        if copy and kind and kind[1] in _PRODUCTS and all(_has_int8(tensors) for tensors in (inputs, constants)):
            found[copy[1]] += 1
    return max(found.values(), default=0)


def _has_int8(tensors: list[tuple[str, str, str]]) -> bool:
    return any(dtype == "Int8" for _, _, dtype in tensors)


if __name__ == "__main__":
    main()
