"""Time what edgec may fuse beside the same left apart, so that rules in edgec/fuse refuse where the fused is slower.

Both versions of a case have the same weights, give the same outputs (checked first), and run in one process, in turn.
Both are opened several times: where memory lands can make one of them slower by a tenth for as long as it is open, of
which rounds alone show nothing. Writes bench/results/fusions.json and .md. Below 1, the fused takes less time.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper
from paired import interleave, ratio

from edgec.measure.fingerprint import fingerprint

RESULTS = Path(__file__).parent / "results"
ROWS = (1, 4, 16, 128)
NORMS = {"LayerNormalization": "SkipLayerNormalization", "RMSNormalization": "SkipSimplifiedLayerNormalization"}
CONTRIB = ("MatMulIntegerToFloat", "MatMulNBits", "QuickGelu", *NORMS.values())
SMALL, LARGE = 20, 6  # layers of a case, of few weights and of many: the products' do not all fit into a cache
HEAD, INNER = 64, 1536
OPENINGS = 7
ROUNDS = (10, 100)  # of each opening, at least and at most
INTERVAL = "{:.3f} ({:.3f} to {:.3f})"
GROUPS = {
    "norm": "Sum and norm as SkipLayerNormalization or SkipSimplifiedLayerNormalization",
    "packing": "Three or two products of one input as one and a Split, in layers of attention or of a gated MLP",
    "silu": "x * Sigmoid(x) as QuickGelu, which ONNX Runtime makes of it as it loads the model",
}

Array = NDArray[np.float32]
Runner = Callable[[Array], Array]


class Graph:
    """An ONNX graph that grows node by node from its input x, float32 of (1, rows, width)."""

    def __init__(self, rows: int, width: int) -> None:
        self.shape = (1, rows, width)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def random(self, *shape: int) -> Array:
        """Draw numbers whose product with a row of unit variance has unit variance."""
        return self.rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[0]))

    def constant(self, array: ArrayLike) -> str:
        """Add a constant, and return its name."""
        name = f"constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: Sequence[bool] = (True,), **attributes: Any) -> list[str]:
        """Add a node, and return the names of those of its outputs that are wanted."""
        names = [f"{operator}.{len(self.nodes)}.{i}" if wanted else "" for i, wanted in enumerate(outputs)]
        domain = "com.microsoft" if operator in CONTRIB else ""
        self.nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return [name for name in names if name]

    def one(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and return its name."""
        return self.add(operator, *inputs, **attributes)[0]

    def model(self, output: str) -> onnx.ModelProto:
        """Return the model, with an output of the input's shape."""
        x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, self.shape) for name in ("x", output))
        graph = helper.make_graph(self.nodes, "fusion", [x], [y], self.constants)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


How = tuple[str, str]  # the runtime, and what is multiplied by what
ARITHMETICS: tuple[How, ...] = (
    *(("ONNX Runtime", numbers) for numbers in ("float32", "int8 by int8", "int8 weights", "int4 weights")),
    *(("OpenVINO", numbers) for numbers in ("float32", "int8 by int8")),
)


def grid(graph: Graph) -> tuple[str, str]:
    """Return scale and zero point of unsigned integers that reach to 4."""
    return graph.constant(np.float32(4 / 127)), graph.constant(np.uint8(128))


def read(graph: Graph, how: How, x: str) -> str:
    """Return what products take of a value, which is made once for all of them."""
    runtime, numbers = how
    if numbers != "int8 by int8":
        return x
    rounded = graph.one("QuantizeLinear", x, *grid(graph))
    return rounded if runtime == "ONNX Runtime" else graph.one("DequantizeLinear", rounded, *grid(graph))


def multiply(graph: Graph, how: How, x: str, matrix: Array) -> str:
    """Multiply what was read by a matrix of (in, out)."""
    runtime, numbers = how
    if numbers == "float32":
        return graph.one("MatMul", x, graph.constant(matrix))
    if numbers != "int8 by int8":
        return multiply_blocks(graph, x, matrix, bits=8 if numbers == "int8 weights" else 4)
    largest = np.abs(matrix).max(axis=0) / np.float32(127)
    codes, scales = graph.constant(np.round(matrix / largest).astype(np.int8)), graph.constant(largest)
    if runtime == "ONNX Runtime":
        scale, zero = grid(graph)
        return graph.one("MatMulIntegerToFloat", x, codes, scale, scales, zero)
    return graph.one("MatMul", x, graph.one("DequantizeLinear", codes, scales, axis=1))


def multiply_blocks(graph: Graph, x: str, matrix: Array, *, bits: int) -> str:
    """Multiply by integers with a scale for each block of an output's weights, in blocks that edgec makes."""
    inner, outer = matrix.shape
    size = 32 if bits == 4 else math.gcd(inner, 128)
    blocks = matrix.T.reshape(outer, inner // size, size)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    codes = (np.round(blocks / scales) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return graph.one(
        "MatMulNBits", x, graph.constant(codes), graph.constant(scales[..., 0]),
        K=inner, N=outer, bits=bits, block_size=size, accuracy_level=4,
    )  # fmt: skip


def products(graph: Graph, how: How, x: str, matrices: Sequence[Array], *, fused: bool) -> list[str]:
    """Multiply a value by each matrix, or by all of them at once, of which the parts are taken."""
    x = read(graph, how, x)
    if not fused:
        return [multiply(graph, how, x, matrix) for matrix in matrices]
    wide = multiply(graph, how, x, np.concatenate(matrices, axis=1))
    widths = graph.constant(np.array([matrix.shape[1] for matrix in matrices]))
    return graph.add("Split", wide, widths, outputs=[True] * len(matrices), axis=-1)


def attention(graph: Graph, how: How, x: str, width: int, *, fused: bool) -> str:
    """Attend over the rows, with as many heads for keys as for queries."""
    parts = products(graph, how, x, [graph.random(width, width) for _ in range(3)], fused=fused)
    heads = width // HEAD
    mixed = graph.one("Attention", *parts, q_num_heads=heads, kv_num_heads=heads)
    return multiply(graph, how, read(graph, how, mixed), graph.random(width, width))


def mlp(graph: Graph, how: How, x: str, width: int, *, fused: bool) -> str:
    """Multiply by a gate that went through SiLU."""
    gate, up = products(graph, how, x, [graph.random(width, INNER) for _ in range(2)], fused=fused)
    gated = graph.one("Mul", graph.one("Mul", gate, graph.one("Sigmoid", gate)), up)
    return multiply(graph, how, read(graph, how, gated), graph.random(INNER, width))


LAYERS: dict[str, tuple[Callable[..., str], int]] = {
    "Q, K, V: 384 to 3 x 384": (attention, 384),
    "Q, K, V: 768 to 3 x 768": (attention, 768),
    f"gate, up: 576 to 2 x {INNER}": (mlp, 576),
}


def packing(layer: Callable[..., str], how: How, rows: int, width: int, *, fused: bool) -> onnx.ModelProto:
    """Return layers with a norm in front of each, and a sum behind it."""
    graph, x = Graph(rows, width), "x"
    for _ in range(LARGE):
        normal = graph.one("RMSNormalization", x, graph.constant(np.ones(width, np.float32)))
        x = graph.one("Add", x, layer(graph, how, normal, width, fused=fused))
    return graph.model(x)


def norm(kind: str, rows: int, width: int, *, fused: bool) -> onnx.ModelProto:
    """Return norms of the sum of the norm before and what that is of; as Sum, which ONNX Runtime does not fuse."""
    graph, x, skip = Graph(rows, width), "x", "x"
    for _ in range(SMALL):
        count = 2 if kind == "LayerNormalization" else 1  # weight and bias
        parameters = [graph.constant(graph.rng.standard_normal(width, np.float32)) for _ in range(count)]
        if fused:
            outputs = (True, False, False, True)
            x, skip = graph.add(NORMS[kind], x, skip, *parameters, outputs=outputs, epsilon=1e-5)
        else:
            skip = graph.one("Sum", x, skip)
            x = graph.one(kind, skip, *parameters, epsilon=1e-5)
    return graph.model(x)


def silu(rows: int, width: int, *, fused: bool) -> onnx.ModelProto:
    """Return SiLUs, one behind the other."""
    graph, x = Graph(rows, width), "x"
    for _ in range(SMALL):
        x = graph.one("QuickGelu", x, alpha=1.0) if fused else graph.one("Mul", x, graph.one("Sigmoid", x))
    return graph.model(x)


@dataclass(frozen=True)
class Case:
    """Something to time fused and apart.

    Attributes:
        group: the table that it is in.
        labels: what it is, by column of the table.
        rows: how many; says which column of the table.
        width: of the input.
        make: the model, given rows, width, and whether it is `fused`.
    """

    group: str
    labels: dict[str, str]
    rows: int
    width: int
    make: Callable[..., onnx.ModelProto]


def cases() -> Iterator[Case]:
    """Yield all, those of one line of a table one after the other."""
    for kind, width, rows in itertools.product(NORMS, (384, 576, 2048), ROWS):
        labels = {"runtime": "ONNX Runtime", "norm": kind, "width": str(width)}
        yield Case("norm", labels, rows, width, partial(norm, kind))
    for how, (name, (layer, width)), rows in itertools.product(ARITHMETICS, LAYERS.items(), ROWS):
        labels = {"runtime": how[0], "numbers": how[1], "products": name}
        yield Case("packing", labels, rows, width, partial(packing, layer, how))
    for rows in (1, 128):
        yield Case("silu", {"runtime": "ONNX Runtime", "width": str(INNER)}, rows, INNER, silu)


def open_onnxruntime(model: onnx.ModelProto, threads: int) -> Runner:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for more work of one session would take the processors from the other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: cast("Array", session.run(None, {"x": x})[0])


def open_openvino(model: onnx.ModelProto, threads: int) -> Runner:
    # Left to itself, OpenVINO computes float32 in bfloat16 where the processor can.
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = ov.Core()
    request = core.compile_model(core.read_model(model.SerializeToString()), "CPU", properties).create_infer_request()
    return lambda x: cast("Array", request.infer({"x": x})[0])


OPEN = {"ONNX Runtime": open_onnxruntime, "OpenVINO": open_openvino}


@dataclass(frozen=True)
class Result:
    """The times of a case, medians; and fused over apart, the median of openings and a 95 % interval of it."""

    group: str
    labels: dict[str, str]
    rows: int
    apart_ms: float
    fused_ms: float
    ratio: tuple[float, float, float]


def measure(case: Case, threads: int, seconds: float) -> Result:
    """Time a case for about so many seconds."""
    x = np.random.default_rng(1).standard_normal((1, case.rows, case.width), np.float32)
    models = {name: case.make(case.rows, case.width, fused=name == "fused") for name in ("apart", "fused")}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(OPENINGS):
        order = list(models) if number % 2 == 0 else list(models)[::-1]
        runs = {name: partial(OPEN[case.labels["runtime"]](models[name], threads), x) for name in order}
        expected = runs["apart"]().copy()
        if not np.allclose(runs["fused"](), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
            sys.exit(f"the outputs of {case.labels} with {case.rows} rows differ")
        for name, median in race(runs, threads, seconds / OPENINGS).items():
            times[name].append(median)
    apart, fused = times["apart"], times["fused"]
    medians = statistics.median(apart), statistics.median(fused)
    return Result(case.group, case.labels, case.rows, *medians, ratio(fused, apart))


def race(runs: Mapping[str, Callable[[], Array]], threads: int, seconds: float) -> dict[str, float]:
    """Return the median time of each in ms."""
    # What else the machine does is no part of the processor time of one thread; that of several says nothing.
    clock = time.process_time if threads == 1 else time.perf_counter

    def milliseconds(run: Callable[[], Array]) -> float:
        start = clock()
        run()
        return 1e3 * (clock() - start)

    once = sum(map(milliseconds, runs.values()))
    rounds = int(np.clip(1e3 * seconds / once, *ROUNDS))
    taken = interleave(rounds, **{name: partial(milliseconds, run) for name, run in runs.items()})
    return {name: statistics.median(cast("list[float]", values)) for name, values in taken.items()}


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of one group: a line for each thing fused, a column for each number of rows."""
    rows = sorted({result.rows for result in results})
    heads = [*results[0].labels, *(f"{number} row{'s' * (number > 1)}" for number in rows)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for labels, line in itertools.groupby(results, lambda result: result.labels):
        cells = [INTERVAL.format(*result.ratio) for result in line]
        lines.append("| " + " | ".join([*labels.values(), *cells]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of the runtimes")
    parser.add_argument("--seconds", type=float, default=2.5, help="to time each case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the results")
    asked = parser.parse_args()
    results = []
    for case in cases():
        results.append(measure(case, asked.threads, asked.seconds))
        print(*case.labels.values(), f"rows {case.rows}", INTERVAL.format(*results[-1].ratio), sep=", ", flush=True)
    lines: list[str] = []
    for group, members in itertools.groupby(results, lambda result: result.group):
        lines += [f"{GROUPS[group]}:", "", *table(list(members)), ""]
    machine = fingerprint()
    versions = {name: version(name) for name in ("onnxruntime", "openvino", "numpy")}
    protocol = (
        f"Time of the fused over that of the apart: median of {OPENINGS} openings, 95 % bootstrap interval. "
        f"{asked.threads} thread{'s' * (asked.threads > 1)}, {'processor' if asked.threads == 1 else 'wall'} time; "
        f"{ROUNDS[0]} to {ROUNDS[1]} rounds in each opening, A B B A. {SMALL} norms or activations in a chain, or "
        f"{LARGE} layers with RMSNormalization in front and a sum behind; static shapes. int8 by int8 is "
        "MatMulIntegerToFloat in ONNX Runtime, QuantizeLinear and DequantizeLinear in OpenVINO; int8 and int4 weights "
        "are MatMulNBits at accuracy level 4 in blocks of 64 or 128, and of 32."
    )
    about = f"{machine['cpu_model']}, {machine['usable_cpus']} CPUs ({machine['cpu_flags']})"
    lines += [protocol, "", f"{about}, {', '.join(f'{name} {number}' for name, number in versions.items())}.", ""]
    raw = {"machine": machine, "versions": versions, "threads": asked.threads, "results": [*map(asdict, results)]}
    asked.out.mkdir(exist_ok=True)
    (asked.out / "fusions.json").write_text(json.dumps(raw, indent=1) + "\n")
    (asked.out / "fusions.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
