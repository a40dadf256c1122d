"""What networks are written as for ONNX Runtime, and what it makes of that."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.shape_inference import infer_shapes
from tiny_networks import Tiny, weights

from edgec.backends.onnx_cpu.codes import kernel_codes
from edgec.backends.onnx_cpu.network import lower_network

SKIP = "SkipLayerNormalization"
SIZES = weights(w=(64, 64), v=(64, 64), bw=(64,), g=(64,), b=(64,))
BODY = """
    m = MatMul (x, w)
    a = Add (m, bw)
    r = Add (a, x)
    n = LayerNormalization <axis=-1> (r, g, b)
    o = MatMul (n, v)
    s = Add (o, n)
    y = LayerNormalization <axis=-1> (s, g, b)
"""


def model_of(body=BODY, outputs="float[N, S, 64] y", **changes):
    tiny = Tiny(f"(float[N, S, 64] x) => ({outputs}) {{{body}}}", {**SIZES, **changes}, None)
    return ir.from_proto(infer_shapes(tiny.proto()))


def optimized(model, folder):
    """Return the operators that ONNX Runtime runs, and what they compute."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / f"{len(list(folder.iterdir()))}.onnx")
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)
    graph = onnx.load(options.optimized_model_filepath).graph
    return [node.op_type for node in graph.node], session.run(None, {"x": x})


def test_norms_are_not_joined_with_the_sums_in_front(tmp_path):
    model = model_of()
    before = ir.to_proto(model).SerializeToString()
    lowered = lower_network(model, "float", unsigned_weights=False)
    assert ir.to_proto(model).SerializeToString() == before
    plain, expected = optimized(model, tmp_path)
    assert plain.count(SKIP) == 2  # what is to be kept from happening
    kinds, found = optimized(lowered, tmp_path)
    assert SKIP not in kinds
    assert kinds.count("LayerNormalization") == 2
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("r = Add (x, bw) y = LayerNormalization <axis=-1> (r, g, b)", "float[N, S, 64] y"),
        ("r = Add (x, x) y = LayerNormalization <axis=-1> (r, g)", "float[N, S, 64] y"),
        ("r = Add (x, bw) y = LayerNormalization <axis=-1> (r, g, b)", "float[N, S, 64] y, float[N, S, 64] r"),
    ],
)
def test_whatever_is_added(body, outputs, tmp_path):
    used = {name: array for name, array in SIZES.items() if f"{name})" in body or f"{name}," in body}
    tiny = Tiny(f"(float[N, S, 64] x) => ({outputs}) {{{body}}}", used, None)
    model = ir.from_proto(infer_shapes(tiny.proto()))
    kinds, found = optimized(lower_network(model, "float", unsigned_weights=False), tmp_path)
    assert SKIP not in kinds
    for expected, array in zip(optimized(model, tmp_path)[1], found, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)


def test_other_sums_and_norms_stay():
    model = model_of(
        """r = Add (x, bw) t = Tanh (r) n = LayerNormalization <axis=-1> (t, g, b)
           m = MatMul (n, w) o = MatMul (m, v) y = Add (o, x)"""
    )
    lowered = lower_network(model, "float", unsigned_weights=False)
    assert [node.op_type for node in lowered.graph].count("Add") == 2
    inputs = model_of("n = LayerNormalization <axis=-1> (x, g, b) m = MatMul (n, w) a = Add (m, bw) y = MatMul (a, v)")
    assert "Sum" not in {node.op_type for node in lower_network(inputs, "float", unsigned_weights=False).graph}


def test_weights_alone_are_packed_for_attention_whatever_the_rows(tmp_path):
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(-127, 128, (64, 64)).astype(np.int8) for name in ("q", "k", "v")}
    scales = {f"{name}s": rng.uniform(0.001, 0.002, 64).astype(np.float32) for name in codes}
    body = "".join(
        f"{n}d = DequantizeLinear <axis=1> ({n}, {n}s) {n}m = MatMul (x, {n}d) {n}y = Add ({n}m, bw) " for n in codes
    )
    body += "y = Attention <q_num_heads=4, kv_num_heads=4> (qy, ky, vy)"
    tiny = Tiny(f"(float[N, S, 64] x) => (float[N, S, 64] y) {{{body}}}", {**codes, **scales, "bw": SIZES["bw"]}, None)
    model = ir.from_proto(infer_shapes(tiny.proto()))
    lowered = lower_network(model, "float", unsigned_weights=False)
    assert [node.op_type for node in lowered.graph] == ["MatMulNBits", "Split", "Attention"]
    options = ort.SessionOptions()  # with its optimizations, ONNX Runtime would round what the weights multiply
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)
    np.testing.assert_allclose(optimized(lowered, tmp_path)[1][0], plain.run(None, {"x": x})[0], atol=1e-5)
    assert {name for name, _ in kernel_codes(lowered.graph)} == set(codes)
