"""The time of integer and float matmuls on this machine, by ONNX Runtime's own kernels."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgec.backends.onnx_cpu import CONTRIB
from edgec.backends.onnx_cpu.kernels import block_size
from edgec.calibrate.cache import cache_dir, key, load, save
from edgec.measure.fingerprint import fingerprint
from edgec.quantize.scheme import Scheme
from edgec.spec.memory import storage_bytes
from edgec.spec.operation import Storage

# Weights that are read one after the other, as a model's are: more than a last-level cache is likely to keep.
_BYTES = 96 << 20
_MOST = 64
_REPEATS = 7


def matmul_ms(rows: int, cols: int, storage: Storage, accuracy_level: int) -> float:
    """Return the time of one token's product with a (rows = out, cols = in) weight, in ms; measured once, and cached.

    Args:
        rows: outputs.
        cols: inputs.
        storage: of the weight; floats are float32 when they run.
        accuracy_level: of MatMulNBits.
    """
    machine = fingerprint()
    facts = [machine[name] for name in ("cpu_model", "cpu_flags", "usable_cpus", "onnxruntime")]
    path = cache_dir() / "kernels" / f"{key(*facts, str((rows, cols, storage, accuracy_level)))}.npz"
    if (found := load(path)) is not None:
        return float(found["ms"])
    ms = _measure(rows, cols, storage, accuracy_level)
    save(path, {"ms": np.array(ms)})
    return ms


def _measure(rows: int, cols: int, storage: Storage, accuracy_level: int) -> float:
    size = storage_bytes(storage if isinstance(storage, Scheme) else "fp32", rows, cols, 4)
    copies = min(_MOST, max(2, _BYTES // size))
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, cols]))
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []
    for number in range(copies):
        node, values = _matmul(x, f"w{number}", rows, cols, storage, accuracy_level)
        node.outputs[0].name, node.outputs[0].type = f"y{number}", ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([1, rows])
        nodes.append(node)
        weights += values
    outputs = [node.outputs[0] for node in nodes]
    imports = {"": 23, CONTRIB: 1}
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=weights, opset_imports=imports, name="matmuls")
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=11))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.random.default_rng(0).standard_normal((1, cols), np.float32)}
    return _best_ms(session, feed) / copies


def _best_ms(session: ort.InferenceSession, feed: dict[str, np.ndarray]) -> float:
    from time import perf_counter

    session.run(None, feed)
    times = []
    for _ in range(_REPEATS):
        start = perf_counter()
        session.run(None, feed)
        times.append(1e3 * (perf_counter() - start))
    return min(times)


def _matmul(
    x: ir.Value, name: str, rows: int, cols: int, storage: Storage, accuracy_level: int
) -> tuple[ir.Node, Sequence[ir.Value]]:
    rng = np.random.default_rng(0)

    def put(suffix: str, array: np.ndarray) -> ir.Value:
        return ir.Value(name=name + suffix, const_value=ir.tensor(array, name=name + suffix))

    if not isinstance(storage, Scheme):
        weight = put("", rng.standard_normal((cols, rows), np.float32))
        return ir.node("MatMul", [x, weight]), [weight]
    width = block_size(storage, cols)
    blocks = -(-cols // width)
    values = [
        put(".codes", rng.integers(0, 256, (rows, blocks, width * storage.bits // 8), np.uint8)),
        put(".scales", np.full((rows, blocks), 0.01, np.float32)),
    ]
    if not storage.symmetric:
        values.append(put(".zeros", rng.integers(0, 256, (rows, -(-blocks * storage.bits // 8)), np.uint8)))
    attributes = {"K": cols, "N": rows, "bits": storage.bits, "block_size": width, "accuracy_level": accuracy_level}
    return ir.node("MatMulNBits", [x, *values], attributes, domain=CONTRIB), values
