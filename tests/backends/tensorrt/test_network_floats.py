"""Where networks compute in float32: what float16 cannot hold never gets there."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from edgec.backends.tensorrt.network import lower_network
from edgec.graph.emit import Emitter

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


def value(name, *shape, dtype=FLOAT):
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def normal(*shape, scale=1.0):
    return (np.random.default_rng(len(shape)).standard_normal(shape) * scale).astype(np.float32)


def finish(emitter, inputs, outputs):
    model = emitter.model("net", inputs, outputs)
    ShapeInferencePass()(model)
    return model


def run(model, feed):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, options, ["CPUExecutionProvider"]).run(None, feed)[0]


def types(lowered):
    """Return what each node computes in, by its name."""
    return {node.name: node.outputs[0].dtype for node in lowered.graph}


@pytest.mark.parametrize("constant", [1e-12, 1e5, -3.4e38])
def test_constants_beyond_float16_are_added_in_float32(constant):
    emitter = Emitter()
    x = value("x", "batch", 8)
    product = emitter.op("MatMul", x, emitter.constant("w", normal(8, 8)), name="product")
    y = emitter.op("Add", product, emitter.constant("constant", np.float32(constant)), name="sum")
    model = finish(emitter, [x], [emitter.op("Relu", y, name="y")])
    found = types(lower_network(model, half=True, old=False))
    assert (found["product"], found["sum"]) == (HALF, FLOAT)


def test_a_mask_of_the_lowest_number_hides_and_stays_finite():
    emitter = Emitter()
    x, given = value("x", "batch", 4, 6, 16), value("given", "batch", 1, 1, 6, dtype=INT64)
    seen = emitter.op("Cast", given, name="seen", to=FLOAT)
    hidden = emitter.op("Sub", emitter.constant("one", np.float32(1)), seen, name="hidden")
    lowest = emitter.constant("lowest", np.finfo(np.float32).min)
    mask = emitter.op(
        "Expand",
        emitter.op("Mul", hidden, lowest, name="mask"),
        emitter.constant("s", np.array([1, 1, 6, 1])),
        name="rows",
    )
    model = finish(emitter, [x, given], [emitter.op("Attention", x, x, x, mask, name="y")])
    feed = {"x": normal(2, 4, 6, 16), "given": np.array([[1, 1, 1, 0, 0, 1], [1] * 6])[:, None, None]}
    expected = run(model, feed)
    assert np.isfinite(expected).all()
    for old in (False, True):
        lowered = lower_network(model, half=True, old=old)
        assert types(lowered)["mask"] == FLOAT
        np.testing.assert_allclose(run(lowered, feed), expected, atol=0.01)


def test_norms_sums_and_the_residual_stream_are_float32():
    emitter = Emitter()
    x = value("x", "batch", 6, 8)
    weights = [emitter.constant(f"w{i}", normal(8, 8, scale=0.3)) for i in range(2)]
    one = emitter.constant("one", np.ones(8, np.float32))
    first = emitter.op("Add", emitter.op("MatMul", x, weights[0], name="m0"), x, name="residual")
    moved = emitter.op("Reshape", first, emitter.constant("s", np.array([0, 0, 8])), name="moved")
    norm = emitter.op("LayerNormalization", moved, one, name="norm")
    inner = emitter.op("Gelu", emitter.op("MatMul", norm, weights[1], name="m1"), name="gelu")
    second = emitter.op("Add", inner, moved, name="second")
    pooled = emitter.op("ReduceMean", second, emitter.constant("axes", np.array([1])), name="pooled", keepdims=0)
    model = finish(emitter, [x], [emitter.op("Sigmoid", pooled, name="y")])
    found = types(lower_network(model, half=True, old=True))
    wide = {"residual", "moved", "norm", "second", "pooled", "y"}
    assert {name for name in ("m0", "m1", "gelu", *wide) if found[name] == FLOAT} == wide
    feed = {"x": normal(2, 6, 8, scale=1e5)}  # the residual stream is beyond float16, and what comes of it is not
    np.testing.assert_allclose(run(lower_network(model, half=True, old=True), feed), run(model, feed), atol=2e-3)


def test_positions_turn_into_angles_in_float32():
    emitter = Emitter()
    positions = value("positions", "batch", 4, dtype=INT64)
    table = emitter.constant("table", normal(16, 8))
    angle = emitter.op(
        "Mul",
        emitter.op("Cast", positions, name="cast", to=FLOAT),
        emitter.constant("f", np.float32(0.7)),
        name="angle",
    )
    turned = emitter.op(
        "Unsqueeze", emitter.op("Cos", angle, name="cos"), emitter.constant("a", np.array([2])), name="turned"
    )
    y = emitter.op("Mul", emitter.op("Gather", table, positions, name="looked_up"), turned, name="y")
    found = types(lower_network(finish(emitter, [positions], [y]), half=True, old=False))
    assert {found[name] for name in ("cast", "angle", "cos", "turned")} == {FLOAT}
    assert found["looked_up"] == HALF


@pytest.mark.parametrize("scale", [2.0**-30, 0.1, 0.125], ids=["too small", "inexact", "exact"])
def test_scales_that_are_no_float16_numbers_stay_float32(scale):
    emitter = Emitter()
    x = value("x", "batch", 8)
    codes = emitter.constant("w.codes", np.arange(-32, 32, dtype=np.int8).reshape(8, 8))
    weight = emitter.op("DequantizeLinear", codes, emitter.constant("w.scales", np.float32(scale)), name="w")
    model = finish(emitter, [x], [emitter.op("MatMul", x, weight, name="y")])
    lowered = lower_network(model, half=True, old=False)
    (weight,) = (node for node in lowered.graph if node.op_type == "DequantizeLinear")
    assert weight.inputs[1].dtype == (HALF if scale == 0.125 else FLOAT)
    assert float(weight.inputs[1].const_value.numpy()) == np.float32(scale)
    feed = {"x": normal(3, 8)}
    np.testing.assert_allclose(run(lowered, feed), run(model, feed), rtol=5e-3)


def test_who_reads_a_rounded_value_in_both_types_gets_it_in_both():
    emitter = Emitter()
    x = value("x", "batch", 8)
    scale, zero = emitter.constant("s", np.float32(0.125)), emitter.constant("z", np.int8(0))
    codes = emitter.op("QuantizeLinear", x, scale, zero, name="x.quantize", dtype=ir.DataType.INT8)
    read = emitter.op("DequantizeLinear", codes, scale, zero, name="x.dequantize")
    weight = emitter.op("DequantizeLinear", emitter.constant("w.codes", np.ones((8, 8), np.int8)), scale, name="w")
    product = emitter.op("MatMul", read, weight, name="product")
    other = emitter.op("MatMul", read, emitter.constant("float", normal(8, 8)), name="other")
    model = finish(emitter, [x], [emitter.op("Mul", product, other, name="y")])
    lowered = lower_network(model, half=True, old=False)
    read = {node.name: node.inputs[0].producer() for node in lowered.graph if node.op_type == "MatMul"}
    assert {name: node.op_type for name, node in read.items()} == dict.fromkeys(
        ("product", "other"), "DequantizeLinear"
    )
    assert {name: node.inputs[1].dtype for name, node in read.items()} == {"product": FLOAT, "other": HALF}
    feed = {"x": normal(3, 8)}
    np.testing.assert_allclose(run(lowered, feed), run(model, feed), atol=0.05)


def test_the_bodies_of_if_stay_float32():
    emitter = Emitter()
    x, choice = value("x", "batch", 8), value("choice", dtype=BOOL)
    hidden = emitter.op("MatMul", x, emitter.constant("w", normal(8, 8)), name="hidden")
    bodies = {}
    for branch, op_type in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        inside = Emitter()
        y = inside.op(op_type, hidden, name=branch, shape=ir.Shape(["batch", 8]))
        bodies[branch] = ir.Graph([], [y], nodes=inside.nodes, name=branch)
    model = finish(emitter, [x, choice], [emitter.op("If", choice, name="y", **bodies)])
    lowered = lower_network(model, half=True, old=False)
    assert types(lowered)["hidden"] == HALF
    for chosen in (True, False):
        feed = {"x": normal(3, 8), "choice": np.array(chosen)}
        np.testing.assert_allclose(run(lowered, feed), run(model, feed), atol=0.02)
