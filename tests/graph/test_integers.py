"""Reading the integers of a quantized network, and taking out what rounds activations."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from edgec.calibrate.run import run
from edgec.graph.integers import clipped, flat, grids_of, network_codes, weight_nodes, without_rounding

GRAPH = """<ir_version: 10, opset_import: ["": 23]> g (float[2, 3] x) => (float[2, 4] y, float[2, 3] z)
<float s = {0.5}, uint8 low = {10}, int8 mid = {-3}, float[4] ws = {0.25, 0.5, 1.0, 2.0}, float[4] bs = {1, 1, 1, 1}> {
    q = QuantizeLinear (x, s, low)
    d = DequantizeLinear (q, s, low)
    w = DequantizeLinear <axis=1> ("w.codes", ws)
    b = DequantizeLinear <axis=0> ("b.codes", bs)
    m = Gemm (d, w, b)
    p = QuantizeLinear (x, s, mid)
    r = DequantizeLinear (p, s, mid)
    z = Neg (r)
    y = Relu (m)
}"""


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(GRAPH.replace('"w.codes"', "w_codes").replace('"b.codes"', "b_codes"))
    codes = {"w_codes": rng.integers(-128, 128, (3, 4)).astype(np.int8), "b_codes": np.arange(4, dtype=np.int32)}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in codes.items())
    names = {"q": "x.quantize", "d": "x.dequantize", "p": "again.quantize", "r": "again.dequantize"}
    for node in proto.graph.node:
        node.name = names.get(node.output[0], node.output[0])
    model = ir.from_proto(proto)
    for name in ("w", "b"):
        model.graph.initializers[f"{name}_codes"].name = f"{name}.codes"
    return model


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flat_puts_outputs_first(axis):
    array = np.arange(24).reshape(2, 3, 4)
    rows = flat(array, axis)
    assert rows.shape == (array.shape[axis], 24 // array.shape[axis])
    assert rows.flags.c_contiguous
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(row, array.take(index, axis).ravel())


def test_weights_are_read_by_output(model):
    ((name, codes, scales),) = network_codes(model.graph)
    assert name == "w"
    assert codes.shape == (4, 3)
    np.testing.assert_array_equal(codes, model.graph.initializers["w.codes"].const_value.numpy().T)
    np.testing.assert_array_equal(scales, [0.25, 0.5, 1, 2])
    assert [name for name, _ in weight_nodes(model.graph)] == ["w"]  # biases and activations are none


def test_grids_count_signed_integers_from_their_lowest(model):
    assert grids_of(model.graph) == {"x": (0.5, 10), "again": (0.5, 125)}


def test_without_rounding_what_lies_beyond_the_integers_is_still_clipped(model):
    x = np.array([[-100, 0.3, 100], [-4.99, 122.4, 63.3]], np.float32)
    without_rounding(model.graph)
    kinds = [node.op_type for node in model.graph]
    assert "QuantizeLinear" not in kinds
    assert kinds.count("DequantizeLinear") == 2  # the weight and the bias
    assert kinds.count("Clip") == 2
    (found,) = run(model, [{"x": x}])
    np.testing.assert_array_equal(found["z"], -np.clip(x, -125 * 0.5, 130 * 0.5))
    codes = model.graph.initializers["w.codes"].const_value.numpy()
    wanted = np.clip(x, -5, 122.5) @ (codes * np.float32([0.25, 0.5, 1, 2])) + np.arange(4)
    np.testing.assert_allclose(found["y"], np.maximum(wanted, 0), rtol=1e-5, atol=1e-4)


def test_a_value_is_clipped_once(model):
    quantize = next(node for node in model.graph if node.name == "x.quantize")
    assert clipped(model.graph, quantize) is clipped(model.graph, quantize)
    without_rounding(model.graph)
    without_rounding(model.graph)  # there is nothing left to do
    assert [node.op_type for node in model.graph].count("Clip") == 2
